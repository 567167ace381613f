"""The U-Net beside diffusers' UNet2DModel: the same names, outputs and gradients."""

import inspect

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.unet import UNet, UNetConfig, their_config

diffusers = pytest.importorskip("diffusers")

PLAIN = {
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
CASES = {
    "plain": (PLAIN, {"widths": (32, 64), "attention": (1,), "groups": 8}),
    "as published in 2020": (
        PLAIN
        | {
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        {
            "widths": (32, 64),
            "attention": (1,),
            "groups": 8,
            "head_dim": None,
            "padding": 0,
            "cosine_first": False,
            "rate_shift": 1,
            "eps": 1e-6,
        },
    ),
    "labels, scale and shift, learned variance": (
        PLAIN
        | {
            "out_channels": 6,
            "num_class_embeds": 10,
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 8,
            "act_fn": "gelu",
        },
        {
            "widths": (32, 64),
            "attention": (1,),
            "groups": 8,
            "outputs": 6,
            "classes": 10,
            "time": "scale_shift",
            "activation": "gelu",
        },
    ),
    "three levels, attention at two": (
        PLAIN
        | {
            "block_out_channels": (32, 64, 96),
            "layers_per_block": 1,
            "down_block_types": (
                "DownBlock2D",
                "AttnDownBlock2D",
                "AttnDownBlock2D",
            ),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        {
            "widths": (32, 64, 96),
            "attention": (1, 2),
            "blocks": 1,
            "groups": 8,
        },
    ),
}


def pair(case, dtype):
    """Return their network and ours with the same weights, norms included."""
    options, fields = CASES[case]
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter += 0.1 * torch.randn(
                    parameter.shape, generator=generator
                )
    ours = UNet(UNetConfig(**fields))
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype).eval(), ours.to(dtype).eval()


def outputs(case, dtype):
    theirs, ours = pair(case, dtype)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 3, 16, 16, generator=generator).to(dtype)
    t = torch.tensor([1, 400, 1000])
    label = torch.tensor([0, 9, 4]) if ours.config.classes else None
    exact = theirs(x, t - 1, class_labels=label).sample
    return theirs, ours, exact, ours(x, t, label)


@pytest.mark.verifies("eq-unet", "eq-residual-block", "eq-unet-attention")
@pytest.mark.parametrize(
    ("dtype", "near", "near_gradient"),
    [(torch.float64, 1e-10, 1e-10), (torch.float32, 2e-6, 1e-5)],
)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_theirs(case, dtype, near, near_gradient):
    theirs, ours, exact, found = outputs(case, dtype)
    scale = exact.abs().max().item()
    assert scale > 0.1
    assert_close(found, exact, rtol=0, atol=near * scale)
    for output in (exact, found):
        output.square().sum().backward()
    mine = dict(ours.named_parameters())
    largest = max(p.grad.abs().max().item() for p in theirs.parameters())
    for name, parameter in theirs.named_parameters():
        assert_close(
            mine[name].grad,
            parameter.grad,
            rtol=0,
            atol=near_gradient * largest,
        )


def test_what_is_not_chosen_is_as_theirs():
    signature = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    theirs = {
        name: list(given.default)
        if isinstance(given.default, tuple)
        else given.default
        for name, given in signature.items()
    }
    config = UNetConfig(widths=tuple(theirs["block_out_channels"]))
    ours = their_config(config)
    # Theirs attends at three of four levels unless told otherwise.
    for name in ours.keys() - {"down_block_types", "up_block_types"}:
        if not name.startswith("_"):
            assert ours[name] == theirs[name], name


@pytest.mark.parametrize("wrong", ["no shift of t", "skip first"])
def test_a_difference_would_be_seen(wrong, monkeypatch):
    theirs, ours = pair("plain", torch.float64)
    x, t = torch.randn(1, 3, 16, 16).double(), torch.tensor([400])
    exact = theirs(x, t if wrong == "no shift of t" else t - 1).sample
    if wrong == "skip first":
        join = torch.cat
        monkeypatch.setattr(
            torch, "cat", lambda xs, dim=0: join(xs[::-1], dim)
        )
    found = ours(x, t)
    assert (found - exact).abs().max() > 1e-6
