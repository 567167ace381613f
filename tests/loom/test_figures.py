"""The call that makes an interactive figure: what it says about bad input, what it draws."""

import json

import numpy as np
import pytest
import torch

from loom.figures import FigureError, Quantised, engine, picture, widget
from loom.weave.latex.stills import sheet
from tests.widgets.references import array
from tests.widgets.samples import SAMPLES, WORDS, function_plot

FAMILIES = sorted(SAMPLES)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"alt": ""}, FigureError, "alt must not be empty"),
        ({"question": 3}, TypeError, "question must be text, got int"),
        ({"stills": []}, FigureError, "stills must name the states"),
        (
            {"stills": ["t"]},
            TypeError,
            "a still is a pair of a label and a state",
        ),
        (
            {"stills": [("", {}), ("", {"t": 3})]},
            FigureError,
            "each needs a label",
        ),
        (
            {"stills": [("", {"u": 3})]},
            FigureError,
            "has no u, only t, linear",
        ),
        ({"stills": [("", {"t": 201})]}, FigureError, "t cannot be 201"),
        ({"stills": [("", {"t": "3"})]}, FigureError, 't cannot be "3"'),
        ({"colour": "blue"}, FigureError, "function-plot knows no colour"),
        (
            {"x": object()},
            TypeError,
            "x must be numbers, text, lists or arrays",
        ),
        ({"x": [1.0, float("nan")]}, FigureError, "x holds nan"),
        ({"x": np.array([np.inf])}, FigureError, "is not finite"),
        ({"x": np.array([1j])}, TypeError, "got complex128"),
        (
            {"x": Quantised([0.0, 2.0], 0, 1)},
            FigureError,
            "numbers from 0 to 2 do not fit 0 to 1",
        ),
        (
            {"x": Quantised([0.0], 0, 1, bits=4)},
            FigureError,
            "bits must be 8 or 16",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(changes, error, sentence):
    with pytest.raises(error) as caught:
        function_plot(**changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_property_and_an_unknown_family_are_named():
    with pytest.raises(
        FigureError, match=r"needs x: the number along the axis"
    ):
        widget("function-plot", stills=[("", {})], **WORDS)
    with pytest.raises(FigureError, match=r"no family pie, only"):
        widget("pie", stills=[("", {})], **WORDS)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 2, 2, 2)])
def test_pixels_of_another_shape_or_range_are_refused(shape):
    if len(shape) != 2:
        with pytest.raises(FigureError, match="pixels must be"):
            picture(np.zeros(shape))
    with pytest.raises(FigureError, match="between 0 and 1"):
        picture(np.full((2, 3), 1.5))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6, dtype="f4"),
        torch.arange(6).reshape(3, 2),
        torch.rand(3, requires_grad=True),
        np.array([True, False]),
        np.zeros((0, 3)),
    ],
)
def test_arrays_arrive_as_they_were(values):
    """In the script, and in the tests that read a page."""
    wanted = values.tolist()
    found = engine().call("plain", {"values": values})["values"]
    assert found["shape"] == list(values.shape)
    flat = np.asarray(wanted, dtype=float).ravel()
    assert found["data"] == flat.tolist()


def test_quantised_numbers_are_within_half_a_step():
    values = np.random.default_rng(0).uniform(-3, 3, (4, 5))
    for bits in (8, 16):
        sent = Quantised(values, -3, 3, bits)
        off = np.abs(array(sent.packed()) - values)
        assert off.max() <= 3 / (2**bits - 1) + 1e-12
        found = engine().call("plain", sent)["data"]
        assert np.abs(np.array(found) - values.ravel()).max() == off.max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_figure_opens_in_the_state_of_its_first_still(family):
    spec = SAMPLES[family]().spec
    wanted = json.loads(spec)["stills"][0]["state"]
    state = engine().call("state", spec)
    assert wanted.items() <= state.items()


@pytest.mark.parametrize("family", FAMILIES)
def test_print_has_every_still_in_colours_of_its_own(family):
    spec = SAMPLES[family]().spec
    stills = json.loads(spec)["stills"]
    drawn = sheet(spec)
    assert drawn.count("<svg ") == 1 + len(stills)
    assert "var(" not in drawn
    assert "tabindex" not in drawn
    assert all(f">{s['label']}</text>" in drawn for s in stills if s["label"])


def test_before_anything_runs_no_control_can_be_reached():
    opened = engine().call("page", function_plot().spec)
    assert 'inert=""' in opened
    assert "tabindex" not in opened


def test_a_value_beyond_all_bounds_is_said_to_have_diverged():
    column = {
        "key": "snr",
        "label": "SNR",
        "function": "diffusion.schedule.entry",
        "args": {"table": "snr"},
    }
    opened = engine().call(
        "page", function_plot(columns=[column], stills=[("", {"t": 0})]).spec
    )
    assert 'data-value="Infinity">diverged</output>' in opened
