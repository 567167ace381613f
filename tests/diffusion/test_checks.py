"""What the functions of the part refuse, in one sentence each."""

import math

import numpy as np
import pytest
import torch

from tangled.diffusion.checks import (
    check_alike,
    check_beta,
    check_order,
    check_steps,
)

pytestmark = pytest.mark.usefixtures("plain_errors")

X = torch.zeros(2, 3)


def refused(check, kind, sentence):
    with pytest.raises(kind, match=sentence) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_tensors_of_one_kind_are_accepted():
    check_alike(x0=X, eps=X + 1, xi=X - 1)
    check_alike(x0=torch.zeros(0, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (torch.zeros(2, 4), r"xi must have the shape of x0, got .*4.*3"),
        (X.double(), "xi must have the dtype of x0, got torch.float64 and"),
        (X.to("meta"), "xi must have the device of x0, got meta and cpu"),
    ],
)
def test_another_shape_dtype_or_device_is_refused(other, sentence):
    refused(
        lambda: check_alike(x0=X, eps=X, xi=other), ValueError, f"^{sentence}"
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_no_samples(dtype):
    refused(
        lambda: check_alike(x0=X.to(dtype)),
        TypeError,
        f"^x0 must be a floating tensor, got {dtype}$",
    )


@pytest.mark.parametrize(
    ("t", "kind", "sentence"),
    [
        (1, TypeError, "t must be an int64 tensor, got int$"),
        (np.array([1, 2]), TypeError, "t must be an int64 .*, got int64$"),
        (
            torch.ones(2),
            TypeError,
            "t must be an int64 .*, got torch.float32",
        ),
        (
            torch.tensor([1, 2]).int(),
            TypeError,
            "t must be an int64 tensor, got torch.int32",
        ),
        (torch.tensor([1]), ValueError, r"t must have shape \[2\] on cpu, "),
        (
            torch.tensor([[1], [2]]),
            ValueError,
            r"t .* one step for each sample, got \[2, 1\] on cpu$",
        ),
        (
            torch.tensor([1, 2], device="meta"),
            ValueError,
            r"t must have .* on cpu, .* got \[2\] on meta$",
        ),
    ],
)
def test_steps_of_another_kind_are_refused(t, kind, sentence):
    check_steps(torch.tensor([-1, 10**6]), X)  # the values are not read
    refused(lambda: check_steps(t, X), kind, f"^{sentence}")


@pytest.mark.parametrize(
    ("steps", "fine"),
    [
        ({"t": 0}, True),
        ({"t": 10}, True),
        ({"t": -1}, False),
        ({"t": 11}, False),
        ({"s": 3, "t": 3}, True),
        ({"s": np.int64(3), "t": torch.tensor(4)}, True),
        ({"s": 4, "t": 3}, False),
        ({"s": 0, "t": 11}, False),
        ({"s": -1, "t": 3}, False),
    ],
)
def test_steps_are_in_order_and_in_range(steps, fine):
    if fine:
        check_order(0, 10, **steps)
    else:
        wanted = " <= ".join(["0", *steps, "10"])
        refused(
            lambda: check_order(0, 10, **steps),
            ValueError,
            f"^steps must satisfy {wanted}, got {next(iter(steps))} = ",
        )


@pytest.mark.parametrize("T", [10.0, "10", None, math.nan, True])
def test_a_count_is_a_whole_number(T):
    check_order(1, T=10**9)
    refused(
        lambda: check_order(1, T=T),
        TypeError,
        f"^steps must be whole numbers, got T = {T!r}$",
    )


def test_steps_that_would_be_a_mask_or_several_are_refused():
    for t in (True, torch.tensor([1, 2]), torch.tensor(2.5)):
        refused(
            lambda t=t: check_order(0, 10, s=0, t=t),
            TypeError,
            "^steps must be whole numbers, got s = 0, t = ",
        )


@pytest.mark.parametrize(
    "beta",
    [
        None,
        [0.0, 0.1],
        torch.tensor([0.0, 0.1]),
        torch.tensor([0.0]).double(),
        torch.zeros(2, 2).double(),
    ],
)
def test_what_is_no_table_is_refused(beta):
    refused(
        lambda: check_beta(beta), TypeError, "^beta must be a float64 table"
    )


@pytest.mark.parametrize("beta", [[0.0, 1.0], [0.0, 0.1, 0.2, 1.0]])
def test_the_last_step_may_forget_everything(beta):
    check_beta(torch.tensor(beta, dtype=torch.float64))


@pytest.mark.parametrize(
    ("beta", "t"),
    [
        ([0.1, 0.1], 0),
        ([-1e-300, 0.1], 0),
        ([0.0, 0.1, 0.0, 0.2], 2),
        ([0.0, 1.0, 0.1], 1),
        ([0.0, 1.0, 1.0], 1),
        ([0.0, 0.1, 1 + 1e-15], 2),
        ([0.0, 0.1, -0.1], 2),
        ([0.0, 1.5, 1.5], 1),
        ([0.0, 0.1, math.nan, 0.1], 2),
        ([0.0, math.inf], 1),
        ([0.0, 0.1, 1e-17], 2),  # alpha_bar does not move in float64
        (
            [0.0, 0.6297977202268886, 2e-16, 2e-16, 2e-16],
            4,
        ),  # it moves, SNR does not
        ([0.0, 1e-17], 1),
        ([0.0] + [0.99] * 200, 162),  # alpha_bar is 0 in float64
    ],
)
def test_a_table_under_which_the_theory_fails_is_refused(beta, t):
    beta = torch.tensor(beta, dtype=torch.float64)
    refused(
        lambda: check_beta(beta),
        ValueError,
        rf"^beta must be 0 at t = 0 and then .*, but at t = {t} beta is ",
    )


def test_a_table_at_the_edge_is_accepted():
    for beta in ([1e-15], [1 - 1e-15], [0.99] * 154, [1e-6] * 1000):
        check_beta(torch.tensor([0.0, *beta], dtype=torch.float64))
