"""Folders of models: what we write diffusers opens, and what it writes we open."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tangled.diffusion.pictures import Pipeline, load_pipeline, save_pipeline
from tangled.diffusion.schedule import Schedule, schedule_from_config
from tangled.diffusion.unet import UNet, UNetConfig, load_unet

diffusers = pytest.importorskip("diffusers")

# That of the first published DDPM of CIFAR-10, with fewer channels.
FIRST = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": (
        "DownBlock2D",
        "AttnDownBlock2D",
        "DownBlock2D",
        "DownBlock2D",
    ),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "norm_eps": 1e-6,
    "sample_size": 32,
    "up_block_types": (
        "UpBlock2D",
        "UpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    ),
}


def noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 16, 16, generator=generator)


@torch.no_grad()
def compare(ours, theirs):
    x, t = noise(), torch.tensor([1, 900])
    exact = theirs(x, t - 1).sample
    scale = exact.abs().max().item()
    assert_close(ours(x, t), exact, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("old", [False, True])
def test_their_folder_is_ours_and_ours_is_theirs(old, tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**FIRST).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    if old:
        file = tmp_path / "theirs/diffusion_pytorch_model.safetensors"
        names = {
            "to_q": "query",
            "to_k": "key",
            "to_v": "value",
            "to_out.0": "proj_attn",
        }
        tensors = {}
        for name, value in load_file(file).items():
            for new, former in names.items():
                name = name.replace(new, former)
            tensors[name] = value
        assert any("query" in name for name in tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    ours = load_unet(tmp_path / "theirs")
    compare(ours, theirs)
    mine = Pipeline(ours, Schedule.linear(1000))
    save_pipeline(mine, tmp_path / "ours")
    back = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    compare(ours, back.unet)
    for name, value in theirs.state_dict().items():
        assert torch.equal(back.unet.state_dict()[name], value)


@pytest.mark.parametrize(
    ("prediction", "kind"),
    [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")],
)
def test_their_pipeline_has_our_conventions(prediction, kind, tmp_path):
    torch.manual_seed(0)
    config = UNetConfig(
        widths=(8, 16), groups=4, outputs=6, size=16, head_dim=None
    )
    mine = Pipeline(
        UNet(config), Schedule.cosine(50), prediction, "learned", clip=False
    )
    save_pipeline(mine, tmp_path / "model")
    scheduler = diffusers.DDPMScheduler.from_pretrained(
        tmp_path / "model", subfolder="scheduler"
    )
    assert scheduler.config.prediction_type == kind
    assert scheduler.config.variance_type == "learned_range"
    assert scheduler.config.clip_sample is False
    assert_close(
        scheduler.alphas_cumprod.double(),
        mine.schedule.alpha_bar[1:],
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_schedule": "squaredcos_cap_v2"},
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        {"num_train_timesteps": 40, "beta_end": 0.3},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
    ids=str,
)
def test_their_schedules_are_read(name, options, tmp_path):
    theirs = getattr(diffusers, name)(**options)
    theirs.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    ours = schedule_from_config(json.loads(text))
    assert_close(
        ours.alpha_bar[1:],
        theirs.alphas_cumprod.double(),
        rtol=2e-4,
        atol=1e-6,
    )


def test_their_whole_pipeline_is_read(tmp_path):
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**FIRST)
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large")
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "p")
    found = load_pipeline(tmp_path / "p")
    assert (found.prediction, found.variance, found.clip) == (
        "eps",
        "large",
        True,
    )
    compare(found.network, network.eval())
