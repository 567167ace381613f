"""The tables and the jump against diffusers.

Their arrays have T entries and index i = t - 1; ours have T + 1 and index t. Their tables are made
in float32. A product of up to 1,000 rounded factors is then off by some 1e-7 (largest measured:
2.5e-7), and near the data end 1 - alpha_bar loses four digits, which shows in the noise.
"""

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.forward import diffuse
from tangled.diffusion.schedule import to_index
from tests.parity.schedules import SCHEDULES, pair


@pytest.mark.parametrize("T", [10, 100, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_tables(name, T):
    schedule, library = pair(name, T)
    i = to_index(torch.arange(1, T + 1))
    assert_close(
        library.betas.double()[i], schedule.beta[1:], rtol=2e-6, atol=3e-7
    )
    assert_close(
        library.alphas_cumprod.double()[i],
        schedule.alpha_bar[1:],
        rtol=0,
        atol=5e-7,
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_add_noise(name):
    schedule, library = pair(name)
    t = torch.arange(1, 1001)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1000, 16, generator=generator)
    ours = diffuse(x0, t, eps, schedule)
    theirs = library.add_noise(x0, eps, to_index(t))
    assert_close(ours, theirs, rtol=0, atol=1e-5)
    late = t > 50
    assert_close(ours[late], theirs[late], rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_only_the_precision_of_the_tables_differs(name):
    schedule, library = pair(name)
    library.alphas_cumprod = schedule.alpha_bar[1:]
    t = torch.arange(1, 1001)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(
        2, 1000, 16, generator=generator, dtype=torch.float64
    )
    theirs = library.add_noise(x0, eps, to_index(t))
    assert_close(diffuse(x0, t, eps, schedule), theirs, rtol=0, atol=1e-14)


def test_without_the_index_shift_they_differ():
    schedule, library = pair("linear")
    shifted = library.alphas_cumprod.double()[1:] - schedule.alpha_bar[1:-1]
    assert shifted.abs().max() > 1e-3
