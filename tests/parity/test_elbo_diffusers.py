"""The posterior against diffusers, whose index is i = t - 1 and whose tables are float32."""

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.elbo import posterior, posterior_var
from tangled.diffusion.schedule import to_index
from tests.parity.schedules import SCHEDULES, pair

STEPS = [1, 2, 3, 10, 100, 500, 999, 1000]


def library_of(name, variance="fixed_small"):
    """A schedule and the library's sampler on its float64 tables."""
    schedule, library = pair(
        name,
        variance_type=variance,
        prediction_type="sample",
        clip_sample=False,
    )
    library.alphas_cumprod = schedule.alpha_bar[1:]
    return schedule, library


@pytest.mark.verifies("prop-posterior-variance")
@pytest.mark.parametrize("name", SCHEDULES)
def test_fixed_small_is_the_posterior_variance(name):
    schedule, library = pair(name)
    ours = posterior_var(schedule)
    theirs = torch.stack(
        [library._get_variance(to_index(t)) for t in range(1, 1001)]
    ).double()
    assert theirs[0] == torch.tensor(1e-20)  # their stand-in for 0
    # 1 - alpha_bar in float32 loses up to four digits near the data end
    assert_close(theirs[1:], ours[2:], rtol=5e-3, atol=0)
    later = 5e-4 if name == "sigmoid" else 2e-4
    assert_close(theirs[100:], ours[101:], rtol=later, atol=0)
    _, library = library_of(name)
    for t in range(2, 1001):
        exact = library._get_variance(to_index(t))
        assert_close(exact, ours[t], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_fixed_large_is_beta(name):
    schedule, library = library_of(name, "fixed_large")
    for t in STEPS:
        theirs = library._get_variance(to_index(t))
        assert_close(theirs, schedule.beta[t], rtol=1e-9, atol=0)


@pytest.mark.verifies("thm-posterior")
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_step_of_the_library_is_mean_plus_noise(name):
    schedule, library = library_of(name)
    generator = torch.Generator().manual_seed(0)
    x0, xt = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64)
    for step in STEPS:
        mean, variance = posterior(x0, xt, torch.full((3,), step), schedule)
        theirs = library.step(
            x0, to_index(step), xt, torch.Generator().manual_seed(1)
        ).prev_sample
        noise = torch.randn(
            x0.shape,
            generator=torch.Generator().manual_seed(1),
            dtype=x0.dtype,
        )
        # at t = 1 the library adds no noise, and neither does a variance of 0
        ours = mean + variance.sqrt() * noise
        assert_close(theirs, ours, rtol=0, atol=1e-9)


def test_without_the_index_shift_they_differ():
    schedule, library = library_of("linear")
    shifted = library._get_variance(1)  # their index 1 is step 2
    assert shifted / posterior_var(schedule)[2] == pytest.approx(1)
    assert posterior_var(schedule)[1] == 0
