"""The script that ships beside the package: the same numbers, and slips in it are caught."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.figures import SCRIPT, Engine, engine
from tangled.attention.positions import frequencies, sinusoidal
from tangled.attention.scaled_dot_product import (
    attention_scores,
    attention_weights,
    entropy,
    visible,
)
from tangled.diffusion.ddim import ddim_mean, ddim_sigma
from tangled.diffusion.elbo import posterior
from tangled.diffusion.forward import transition
from tangled.diffusion.schedule import Schedule, schedule_named, step_list
from tests.widgets.references import REFERENCES, compare
from tests.widgets.samples import SAMPLES

FAMILIES = sorted(SAMPLES)
NAMES = ("linear", "scaled_linear", "cosine", "sigmoid")
TABLES = (
    "beta",
    "alpha_bar",
    "signal",
    "noise_std",
    "snr",
    "rho",
    "half_log_snr",
    "phi",
)


def close(found, wanted: torch.Tensor) -> bool:
    found = torch.tensor(found, dtype=torch.float64)
    return torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def check_schedules(script: Engine, name: str, T: int) -> None:
    tables = script.call("diffusion.schedule.schedule_named", name, T)
    schedule = schedule_named(name, T)
    for table in TABLES:
        wanted = getattr(schedule, table)
        assert close(tables[table], wanted), f"another {table}"


def check_attention(
    script: Engine, seed: int, n: int, m: int, d: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, d, generator=generator, dtype=torch.float64)
    k = torch.randn(m, d, generator=generator, dtype=torch.float64)
    place = "attention.scaled_dot_product."
    found = script.call(f"{place}attention_scores", q.tolist(), k.tolist())
    scores = attention_scores(q[None, None], k[None, None])[0, 0]
    assert close(found, scores), "other scores"
    for causal, window in ((False, None), (True, None), (True, 2)):
        if causal and n > m:
            continue
        mask = script.call(f"{place}visible", n, m, causal, window)
        wanted = visible(n, m, causal=causal, window=window)
        assert mask == wanted.tolist(), "another mask"
        rows = script.call(f"{place}attention_weights", scores.tolist(), mask)
        weights = attention_weights(
            q[None, None], k[None, None], causal=causal, window=window
        )[0, 0]
        assert close(rows, weights), "other weights"
        for row, p in zip(rows, weights, strict=True):
            h = script.call(f"{place}entropy", row)
            assert math.isclose(h, entropy(p), abs_tol=1e-9), "entropy"


def check_ddim(script: Engine, T: int, n: int, eta: float) -> None:
    place, schedule = "diffusion.ddim.", schedule_named("linear", T)
    for spacing in ("linspace", "trailing"):
        steps = script.call(f"{place}step_list", T, n, spacing)
        assert steps == step_list(T, n, spacing), f"another {spacing}"
    names = ("alpha_bar", "signal", "noise_std")
    tables = {name: getattr(schedule, name).tolist() for name in names}
    for t, s in pairwise([*steps, 0]):
        sigma = script.call(f"{place}ddim_sigma", tables, t, s, eta)
        wanted = ddim_sigma(schedule, t, s, eta)
        assert close(sigma, wanted), "another sigma"
        x0, xt = torch.tensor([[0.3], [-1.7]], dtype=torch.float64)
        mean = script.call(
            f"{place}ddim_mean", 0.3, -1.7, t, s, tables, sigma
        )
        exact = ddim_mean(x0, xt, t, s, schedule, wanted)
        assert close([mean], exact), "another mean"


def check_posterior(script: Engine, t: int, x0: float, xt: float) -> None:
    schedule = Schedule.linear(8, 0.05, 0.5)
    place, names = "diffusion.elbo.", ("beta", "signal", "alpha_bar")
    tables = {name: getattr(schedule, name).tolist() for name in names}
    found = [
        script.call(f"{place}posterior", x0, xt, t, tables),
        script.call(f"{place}from_data", x0, t, tables),
        script.call(f"{place}from_noisy", xt, t, tables),
    ]
    ends = torch.tensor([[x0], [xt]], dtype=torch.float64)
    exact = posterior(*ends, torch.tensor([t]), schedule)
    scale, variance = transition(schedule, t - 1, t)
    early = schedule.noise_std[t - 1] ** 2
    wanted = [
        exact,
        (schedule.signal[t - 1] * x0, early),
        (xt / scale, variance / scale**2),
    ]
    for bell, (mean, variance) in zip(found, wanted, strict=True):
        assert close(bell["mean"], mean.squeeze()), "another mean"
        assert close(bell["variance"], variance.squeeze()), "another variance"


def check_terms(script: Engine, terms: list[float]) -> None:
    given = {"terms": {"data": terms, "shape": [len(terms)]}}
    exact = torch.tensor(terms, dtype=torch.float64)
    for t in range(len(terms)):
        found = {
            name: script.call(f"diffusion.elbo.bound_{name}", t, given)
            for name in ("term", "from", "share")
        }
        assert found["term"] == terms[t], "another term"
        assert close(found["from"], exact[t:].sum()), "another sum"
        assert close(found["share"], exact[t] / exact.sum()), "another share"


def check_clock(
    script: Engine, places: list[int], hands: int, base: float
) -> None:
    place, width = "attention.positions.", 2 * hands
    found = script.call(f"{place}frequencies", width, base)
    assert close(found, frequencies(width, base)), "other hands"
    rows = script.call(f"{place}sinusoidal", places, width, base)
    wanted = sinusoidal(torch.tensor(places), width, base=base)
    assert close(rows, wanted), "another clock"


def check_figure(script: Engine, family: str, state: dict) -> None:
    spec = SAMPLES[family]().spec
    found = script.call("readouts", spec, state)
    first = script.call("state", spec)
    compare(
        found,
        REFERENCES[family](json.loads(spec)["props"], {**first, **state}),
    )


@given(st.sampled_from(NAMES), st.integers(21, 2000))
@settings(max_examples=40)
def test_schedules_are_those_of_the_package(name, T):
    check_schedules(engine(), name, T)


@given(*[st.integers(0, 99)], *[st.integers(1, 9)] * 3)
@settings(max_examples=40)
def test_attention_is_that_of_the_package(seed, n, m, d):
    check_attention(engine(), seed, n, m, d)


@given(st.data(), st.integers(21, 1000), st.floats(0, 1))
@settings(max_examples=20)
def test_ddim_is_that_of_the_package(data, T, eta):
    check_ddim(engine(), T, data.draw(st.integers(1, min(T, 40))), eta)


@given(st.integers(1, 8), st.floats(-9, 9), st.floats(-9, 9))
@settings(max_examples=40)
def test_the_posterior_is_that_of_the_package(t, x0, xt):
    check_posterior(engine(), t, x0, xt)


@given(st.lists(st.floats(0.001, 9), min_size=1, max_size=9))
@settings(max_examples=20)
def test_the_terms_of_the_bound_add_up_as_they_should(terms):
    check_terms(engine(), terms)


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=9),
    st.integers(1, 40),
    st.floats(2, 1e6),
)
@settings(max_examples=40)
def test_the_clock_is_that_of_the_package(places, hands, base):
    check_clock(engine(), places, hands, base)


def test_a_row_that_may_read_nothing_is_zero():
    place = "attention.scaled_dot_product.attention_weights"
    assert engine().call(place, [[1.0, 2.0]], [[False, False]]) == [[0, 0]]


def values(control: dict) -> st.SearchStrategy:
    """What a hand can set a control to."""
    if control["kind"] == "toggle":
        return st.booleans()
    if control["kind"] == "choice":
        return st.sampled_from([option for option, _ in control["options"]])
    if control["kind"] == "text":
        return st.text(max_size=control["longest"])
    if "stops" in control:
        return st.sampled_from(control["stops"])
    steps = round((control["max"] - control["min"]) / control["step"])
    at = st.integers(0, steps)
    return at.map(lambda n: control["min"] + n * control["step"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_figure_reads_what_the_package_computes(family):
    """In any state that its controls allow."""
    controls = engine().call("controls", SAMPLES[family]().spec, {})

    @given(st.fixed_dictionaries({c["key"]: values(c) for c in controls}))
    @settings(max_examples=30)
    def law(state):
        check_figure(engine(), family, state)

    law()


def test_every_family_has_a_sample_and_a_reference():
    families = engine().call("names")
    assert families == sorted(SAMPLES) == sorted(REFERENCES)


# A slip: what stands in the script, what stands there instead, and a check that must notice it.
SLIPS = [
    (".008", ".08", check_schedules, ("cosine", 200)),
    (".999", "1", check_schedules, ("cosine", 200)),
    ("Math.cos(", "Math.sin(", check_schedules, ("cosine", 200)),
    ("85e-5", "85e-6", check_schedules, ("scaled_linear", 200)),
    ("(-6,6,", "(-6,7,", check_schedules, ("sigmoid", 200)),
    ("Math.atan", "Math.tan", check_schedules, ("linear", 200)),
    ("**(-2*", "**(2*", check_clock, ([3, 50], 4, 1e4)),
    ("Math.sin(", "Math.cos(", check_clock, ([3, 50], 4, 1e4)),
    ("**-.5", "**-1", check_attention, (0, 3, 4, 8)),
    ("Math.log(", "Math.log2(", check_attention, (0, 3, 4, 8)),
    ("Math.log(", "Math.log2(", check_schedules, ("linear", 200)),
    ("===.5?", "===.25?", check_ddim, (1000, 7, 0.5)),
    ('==="trailing"?', '!=="trailing"?', check_ddim, (1000, 7, 0.5)),
    (".slice(1),0]", ".slice(1),1]", check_figure, ("ddim-path", {})),
    ("Math.PI/2/", "Math.PI/", check_figure, ("ddim-path", {})),
    ("Math.sqrt(1-", "Math.sqrt(2-", check_posterior, (3, 0.5, -0.7)),
    (".data.slice(", ".data.slice(1+", check_terms, ([3.0, 1.0, 0.5],)),
    ("**2+2*", "**2-2*", check_figure, ("parts-sum", {})),
]


@pytest.mark.parametrize(
    ("right", "wrong", "check", "arguments"),
    SLIPS,
    ids=[f"{right} {wrong}" for right, wrong, *_ in SLIPS],
)
def test_a_slip_in_the_script_is_caught(right, wrong, check, arguments):
    script = SCRIPT.read_text("utf-8")
    check(engine(), *arguments)
    assert right in script
    with pytest.raises(AssertionError):
        check(Engine(script.replace(right, wrong)), *arguments)
