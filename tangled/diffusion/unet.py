"""The U-Net of diffusion models, with the layer names of the library diffusers.

Tangled from book/diffusion/ddpm.md and book/diffusion/pictures.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from tangled.diffusion.checks import check_steps
from tangled.workshop.checkpoint import (
    load_checkpoint,
    model_tensors,
    read_config,
    save_checkpoint,
)

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "Level",
    "Resample",
    "ResidualBlock",
    "SelfAttention",
    "TimeEmbedding",
    "UNet",
    "UNetConfig",
    "check_input",
    "load_unet",
    "save_unet",
    "their_config",
    "time_features",
    "unet_config",
]


def time_features(
    t: Int64[Tensor, "B"],
    width: int,
    cosine_first: bool = True,
    rate_shift: int = 0,
) -> Float32[Tensor, "B width"]:
    """Return waves of t - 1, from short ones to long ones.

    In float32, as other libraries have them. With `rate_shift` 1 the longest
    wave has 63,000 steps: the exponents run up to 1.

    Implements eq-time-features (book/diffusion/ddpm.md).
    """
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=t.device)
    rates = torch.exp(-math.log(10000) * places / (half - rate_shift))
    angles = (t - 1)[:, None].float() * rates
    waves = [angles.cos(), angles.sin()]
    return torch.cat(waves if cosine_first else waves[::-1], 1)


NORMS: dict[str, Callable[["UNetConfig", int], nn.Module]] = {
    "group": lambda config, n: nn.GroupNorm(config.groups, n, config.eps),
    "layer": lambda config, n: nn.GroupNorm(1, n, config.eps),
    "batch": lambda config, n: nn.BatchNorm2d(n, config.eps),
    "none": lambda config, n: nn.Identity(),
}
ACTIVATIONS = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "mish": nn.Mish,
}


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net, and the choices that can be compared.

    Where the library diffusers has the same field, the default is its own.

    Raises:
        ValueError: if a field is out of range; the sentence names it.
    """

    widths: tuple[int, ...]  # channels of each level, the finest first
    channels: int = 3  # of a picture
    outputs: int | None = None  # channels to predict; None: as many
    blocks: int = 2  # residual blocks of a level
    attention: tuple[int, ...] = ()  # the levels that have it
    head_dim: int | None = 8  # channels of an attention head; None: all
    classes: int | None = None  # if pictures come with a label
    size: int | None = None  # of the pictures it is for
    norm: str = "group"  # or "layer", "batch", "none"
    groups: int = 32  # of "group"
    eps: float = 1e-5  # added to variances
    activation: str = "silu"  # or "gelu", "relu", "mish"
    time: str = "add"  # or "scale_shift", "none"
    skips: bool = True
    dropout: float = 0.0
    padding: int = 1  # of a halving convolution; 0: right and below
    cosine_first: bool = True  # in the features of time
    rate_shift: int = 0  # see `time_features`

    def __post_init__(self) -> None:
        widths, levels = self.widths, range(len(self.widths))
        parts = self.groups if self.norm == "group" else 1
        attended = {*self.attention, len(widths) - 1}
        heads = {widths[level] for level in attended & {*levels}}
        for name, holds, what in (
            (
                "widths",
                widths and min(widths) > 0 and widths[0] % 2 == 0,
                "positive, the first even",
            ),
            (
                "groups",
                not any(n % parts for n in widths),
                "a divisor of all",
            ),
            ("attention", attended <= {*levels}, f"in {levels}"),
            ("blocks", self.blocks >= 1, "at least 1"),
            ("size", isinstance(self.size, int | None), "one number"),
            ("norm", self.norm in NORMS, f"one of {', '.join(NORMS)}"),
            (
                "activation",
                self.activation in ACTIVATIONS,
                f"one of {', '.join(ACTIVATIONS)}",
            ),
            (
                "time",
                self.time in ("add", "scale_shift", "none"),
                "one of add, scale_shift, none",
            ),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("padding", self.padding in (0, 1), "0 or 1"),
            (
                "head_dim",
                not any(n % (self.head_dim or n) for n in heads),
                "a divisor of the widths that attend",
            ),
        ):
            if not holds:
                value = getattr(self, name)
                raise ValueError(f"{name} must be {what}, got {value!r}")

    def normalisation(self, width: int) -> nn.Module:
        """Return a new layer that normalises pictures of so many channels."""
        return NORMS[self.norm](self, width)


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added, with the step between them.

    Implements eq-residual-block (book/diffusion/ddpm.md).
    """

    def __init__(self, config: UNetConfig, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = config.normalisation(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = config.normalisation(after)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.act = ACTIVATIONS[config.activation]()
        self.time = config.time
        if self.time != "none":
            shifts = 2 * after if self.time == "scale_shift" else after
            self.time_emb_proj = nn.Linear(4 * config.widths[0], shifts)
        if before != after:
            self.conv_shortcut = nn.Conv2d(before, after, 1)

    def forward(
        self, x: Float[Tensor, "B before H W"], time: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B after H W"]:
        """Return the corrected pictures; `time` is the embedded step."""
        h = self.conv1(self.act(self.norm1(x)))
        if self.time == "none":
            h = self.norm2(h)
        else:
            moves = self.time_emb_proj(self.act(time))[..., None, None]
            if self.time == "add":
                h = self.norm2(h + moves)
            else:
                scale, shift = moves.chunk(2, 1)
                h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(self.act(h)))
        return h + (self.conv_shortcut(x) if h.shape != x.shape else x)


class SelfAttention(nn.Module):
    """Each place of a picture looks at all others; the result is added.

    Implements eq-unet-attention (book/diffusion/ddpm.md).
    """

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.heads = width // (config.head_dim or width)
        self.group_norm = config.normalisation(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(
        self, x: Float[Tensor, "B width H W"]
    ) -> Float[Tensor, "B width H W"]:
        """Return the pictures with what each place has seen elsewhere."""
        rows = self.group_norm(x).flatten(2).mT
        q, k, v = (
            linear(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        seen = F.scaled_dot_product_attention(q, k, v)
        seen = self.to_out(seen.transpose(1, 2).flatten(2))
        return x + seen.mT.reshape(x.shape)


class Resample(nn.Module):
    """A convolution after doubling the picture, or one that halves it."""

    def __init__(self, width: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding)

    def forward(
        self, x: Float[Tensor, "B width H W"]
    ) -> Float[Tensor, "B width new_H new_W"]:
        """Return the pictures at half their size, or at twice."""
        if self.conv.stride == (1, 1):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Level(nn.Module):
    """Residual blocks at one size, attention, and a change of size."""

    def __init__(
        self,
        config: UNetConfig,
        befores: list[int],
        width: int,
        attends: int,
        halves: bool = False,
        doubles: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(config, before, width) for before in befores
        )
        self.attentions = nn.ModuleList(
            SelfAttention(config, width) for _ in range(attends)
        )
        half = [Resample(width, 2, config.padding)] if halves else []
        self.downsamplers = nn.ModuleList(half)
        self.upsamplers = nn.ModuleList([Resample(width)] if doubles else [])

    def steps(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield each block with the attention after it, or nothing to do."""
        return zip_longest(
            self.resnets, self.attentions, fillvalue=nn.Identity()
        )


class UNet(nn.Module):
    """A network for pictures of any size that halves often enough.

    Source: Ho, Jain and Abbeel (2020), appendix B.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first, top = config.widths[0], len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.channels, first, 3, padding=1)
        self.time_embedding = TimeEmbedding(first)
        if config.classes is not None:
            self.class_embedding = nn.Embedding(config.classes, 4 * first)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        kept, width, n = [first], first, config.blocks
        for level, after in enumerate(config.widths):
            befores = [width] + [after] * (n - 1)
            attends, halves = n * (level in config.attention), level < top
            self.down_blocks.append(
                Level(config, befores, after, attends, halves=halves)
            )
            kept += [after] * (n + halves)
            width = after
        self.mid_block = Level(config, [width, width], width, attends=1)
        for level, after in reversed([*enumerate(config.widths)]):
            befores = [width] + [after] * n
            if config.skips:
                befores = [before + kept.pop() for before in befores]
            attends = (n + 1) * (level in config.attention)
            self.up_blocks.append(
                Level(config, befores, after, attends, doubles=level > 0)
            )
            width = after
        self.conv_norm_out = config.normalisation(first)
        self.conv_act = nn.SiLU()  # whatever the blocks have, as in theirs
        outputs = config.outputs or config.channels
        self.conv_out = nn.Conv2d(first, outputs, 3, padding=1)

    def forward(
        self,
        xt: Float[Tensor, "B C H W"],
        t: Int64[Tensor, "B"],
        label: Int64[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B outputs H W"]:
        """Return the prediction at x_t, for steps t in 1..T.

        Raises:
            ValueError: if height or width cannot be halved at each level, t
                is not one step for each picture, or a label is missing or
                one too many.

        Implements eq-unet (book/diffusion/ddpm.md).
        """
        check_input(self.config, xt, t, label)
        time = self.embedded(t, label).to(xt.dtype)
        x = self.conv_in(xt)
        kept = [x]
        for level in self.down_blocks:
            for block, attend in level.steps():
                x = attend(block(x, time))
                kept.append(x)
            for halve in level.downsamplers:
                x = halve(x)
                kept.append(x)
        first, second = self.mid_block.resnets
        x = self.mid_block.attentions[0](first(x, time))
        x = second(x, time)
        for level in self.up_blocks:
            for block, attend in level.steps():
                if self.config.skips:
                    x = torch.cat([x, kept.pop()], 1)
                x = attend(block(x, time))
            for double in level.upsamplers:
                x = double(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))

    def embedded(
        self, t: Int64[Tensor, "B"], label: Int64[Tensor, "B"] | None
    ) -> Float[Tensor, "B E"]:
        """Return the embedding of steps, and of labels if there are any."""
        config = self.config
        waves = time_features(
            t, config.widths[0], config.cosine_first, config.rate_shift
        )
        time = self.time_embedding(waves.to(self.conv_in.weight.dtype))
        return time if label is None else time + self.class_embedding(label)


class TimeEmbedding(nn.Module):
    """Two layers between the waves of the step and the blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(
        self, waves: Float[Tensor, "B width"]
    ) -> Float[Tensor, "B four_widths"]:
        """Return the embedding of steps, from their `time_features`."""
        return self.linear_2(self.act(self.linear_1(waves)))


def check_input(
    config: UNetConfig,
    xt: Float[Tensor, "B C H W"],
    t: Int64[Tensor, "B"],
    label: Int64[Tensor, "B"] | None,
) -> None:
    """Raise unless a U-Net can take these pictures, steps and labels."""
    side = 2 ** (len(config.widths) - 1)
    if xt.ndim != 4 or xt.shape[1] != config.channels:
        raise ValueError(
            f"xt must be [B, {config.channels}, H, W], got {list(xt.shape)}"
        )
    if xt.shape[2] % side or xt.shape[3] % side:
        raise ValueError(
            f"height and width must be multiples of {side}, "
            f"got {list(xt.shape)}"
        )
    check_steps(t, xt)
    if (label is None) != (config.classes is None):
        needs = "no label" if config.classes is None else "a label"
        raise ValueError(f"the network takes {needs} with a picture")
    if label is not None and label.shape != t.shape:
        raise ValueError(
            f"label must have shape {list(t.shape)}, one class for each "
            f"picture, got {list(label.shape)}"
        )


# Our fields, under the names of UNet2DModel.
_THEIR_NAMES = {
    "widths": "block_out_channels",
    "channels": "in_channels",
    "outputs": "out_channels",
    "blocks": "layers_per_block",
    "head_dim": "attention_head_dim",
    "classes": "num_class_embeds",
    "size": "sample_size",
    "groups": "norm_num_groups",
    "eps": "norm_eps",
    "activation": "act_fn",
    "dropout": "dropout",
    "padding": "downsample_padding",
    "cosine_first": "flip_sin_to_cos",
    "rate_shift": "freq_shift",
}
# What UNet2DModel can be otherwise, and this network cannot.
_FIXED = {
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "num_train_timesteps": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
_TIMES = {"add": "default", "scale_shift": "scale_shift"}
# Names that older files of diffusers have for the layers of attention.
_OLD_NAMES = {
    f"{place}.attentions.#.{old}.{kind}": f"{place}.attentions.#.{new}.{kind}"
    for place in ("down_blocks.#", "mid_block", "up_blocks.#")
    for old, new in (
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    )
    for kind in ("weight", "bias")
}


def unet_config(theirs: Mapping[str, Any]) -> UNetConfig:
    """Return the configuration in a config.json of UNet2DModel.

    Raises:
        ValueError: if it asks for what this network cannot do, or has a key
            that is not known; all of them are named.
    """
    given = {k: v for k, v in theirs.items() if not k.startswith("_")}
    ours = {
        mine: tuple(given[name]) if mine == "widths" else given[name]
        for mine, name in _THEIR_NAMES.items()
        if name in given
    }
    down = given.get("down_block_types", [])
    ours["attention"] = tuple(
        level for level, kind in enumerate(down) if kind.startswith("Attn")
    )
    way = given.get("resnet_time_scale_shift", "default")
    ours["time"] = {b: a for a, b in _TIMES.items()}.get(way, way)
    # With scale and shift their middle attention is normalised only if told.
    middle = ours.get("groups", 32) if way == "scale_shift" else None
    wanted = _FIXED | {
        "down_block_types": [
            kind
            for kind in down
            if kind in ("DownBlock2D", "AttnDownBlock2D")
        ],
        "up_block_types": [kind.replace("Down", "Up") for kind in down[::-1]],
        "attn_norm_num_groups": middle,
        "resnet_time_scale_shift": _TIMES.get(ours["time"]),
    }
    known = {*wanted, *_THEIR_NAMES.values()}
    wrong = [f"{name} (unknown)" for name in given if name not in known]
    for name, value in given.items():
        value = list(value) if isinstance(value, tuple) else value
        if name in wanted and value != wanted[name]:
            wrong.append(f"{name} = {value!r}")
    missing = {"block_out_channels", "down_block_types"} - given.keys()
    wrong += [f"{name} (missing)" for name in sorted(missing)]
    if wrong:
        raise ValueError(f"no U-Net of this book has {', '.join(wrong)}")
    return UNetConfig(**ours)


def their_config(config: UNetConfig) -> dict[str, Any]:
    """Return a configuration as the config.json of UNet2DModel.

    Raises:
        ValueError: if UNet2DModel has no such network.
    """
    own = [
        name
        for name, plain in (("norm", "group"), ("skips", True))
        if getattr(config, name) != plain
    ]
    own += ["time"] if config.time not in _TIMES else []
    if own:
        raise ValueError(
            "UNet2DModel has no such "
            + ", ".join(f"{name} = {getattr(config, name)!r}" for name in own)
        )
    down = [
        "AttnDownBlock2D" if level in config.attention else "DownBlock2D"
        for level in range(len(config.widths))
    ]
    scaled = config.time == "scale_shift"
    values = {
        name: getattr(config, mine) for mine, name in _THEIR_NAMES.items()
    }
    return {
        "_class_name": "UNet2DModel",
        **values,
        **_FIXED,
        "block_out_channels": list(config.widths),
        "out_channels": config.outputs or config.channels,
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in down[::-1]],
        "resnet_time_scale_shift": _TIMES[config.time],
        "attn_norm_num_groups": config.groups if scaled else None,
    }


def load_unet(folder: str | Path) -> UNet:
    """Return the U-Net in a folder of UNet2DModel, to draw with.

    Raises:
        ValueError: as `unet_config` does.
        CheckpointError: if the folder is not such, or weights do not fit.
    """
    try:
        config = unet_config(read_config(folder))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    model = UNet(config)
    load_checkpoint(model, folder, _OLD_NAMES, cast=True)
    return model.eval()


def save_unet(model: UNet, folder: str | Path) -> None:
    """Write a U-Net to a new folder, which diffusers opens as UNet2DModel.

    Raises:
        ValueError: as `their_config` does.
        CheckpointError: if the folder exists, or cannot be written.
    """
    save_checkpoint(
        folder,
        model_tensors(model),
        their_config(model.config),
        stem="diffusion_pytorch_model",
    )
