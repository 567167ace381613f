"""Diffusion on one's own pictures: data, folders that diffusers opens, a command line.

Tangled from book/diffusion/pictures.md.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset

from tangled.diffusion.ddim import ddim_sample
from tangled.diffusion.ddpm import (
    ddpm_sample,
    evaluating,
    fit,
    guessed,
    halves,
)
from tangled.diffusion.elbo import bits_per_dim, posterior_var, vlb
from tangled.diffusion.prediction import Prediction, learned_log_var
from tangled.diffusion.schedule import (
    Schedule,
    schedule_from_config,
    schedule_named,
    schedule_to_config,
    step_list,
)
from tangled.diffusion.unet import UNet, UNetConfig, load_unet, save_unet
from tangled.foundations.training import TrainingError, process_group
from tangled.workshop.checkpoint import CheckpointError, new_folder
from tangled.workshop.data import digits, shapes

__all__ = [
    "PictureFolder",
    "Pipeline",
    "bound_in_bits",
    "command",
    "load_pipeline",
    "picture_grid",
    "save_pipeline",
]


class PictureFolder(Dataset):
    """The pictures in a folder and those below it, float32 [C, H, W] in [-1, 1].

    Args:
        folder: of PNG, JPEG, WebP or BMP files.
        size: of the square that each is cut and scaled to; None: as they are.
        channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: if there are none, one cannot be read or has more than 8
            bits a channel, sizes differ, or an argument is not as said.
    """

    ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

    def __init__(
        self, folder: str | Path, size: int | None = None, channels: int = 3
    ) -> None:
        modes = {1: "L", 3: "RGB"}
        if channels not in modes:
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        if size is not None and not (isinstance(size, int) and size > 0):
            raise ValueError(f"size must be a whole number > 0, got {size!r}")
        if not Path(folder).is_dir():
            raise ValueError(f"{folder} is not a folder")
        self.size, self.mode = size, modes[channels]
        found = sorted(Path(folder).rglob("*"))
        self.files = [f for f in found if f.suffix.lower() in self.ENDINGS]
        if not self.files:
            raise ValueError(
                f"{folder} has no files {', '.join(self.ENDINGS)}"
            )
        sizes = {self._seen(f, _upright_size): f for f in self.files}
        if size is None and len(sizes) > 1:
            (a, first), (b, other), *_ = sizes.items()
            raise ValueError(
                f"{first} is {a[0]} x {a[1]} and {other} is {b[0]} x {b[1]}: "
                "name a size, and all are cut and scaled to it"
            )

    def _seen(self, file: Path, take: Callable[[Image.Image], Any]) -> Any:
        """Return what is taken of a picture while its file is open."""
        try:
            with Image.open(file) as picture:
                if picture.mode[0] in "IF":  # cut to 255 by `convert`
                    raise ValueError(f"{file} has more than 8 bits a channel")
                return take(picture)
        except (OSError, SyntaxError) as error:  # of the file, not of Python
            raise ValueError(f"{file} cannot be read: {error}") from None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Float[Tensor, "C H W"]:
        picture = self._seen(
            self.files[index],
            lambda p: ImageOps.exif_transpose(p).convert(self.mode),
        )
        if self.size is not None:
            side, (wide, high) = min(picture.size), picture.size
            left, top = (wide - side) // 2, (high - side) // 2
            box = (left, top, left + side, top + side)
            picture = picture.crop(box).resize((self.size, self.size))
        numbers = torch.frombuffer(
            bytearray(picture.tobytes()), dtype=torch.uint8
        )
        shape = (picture.height, picture.width, -1)
        return numbers.reshape(shape).permute(2, 0, 1).float() / 127.5 - 1


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return width and height as the camera was held."""
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
    return picture.size[::-1] if turned else picture.size


def picture_grid(
    x0: Float[Tensor, "B C H W"], columns: int = 8, gap: int = 2
) -> Image.Image:
    """Return pictures in [-1, 1] as one, in rows, with white between them.

    Raises:
        ValueError: if there is no picture or no column, or pictures have not
            1 or 3 channels.
    """
    if not len(x0) or columns < 1 or x0.shape[1] not in (1, 3):
        raise ValueError(
            "a grid needs a column, a picture and 1 or 3 channels, "
            f"got columns = {columns} and {list(x0.shape)}"
        )
    levels = ((x0.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round()
    count, _, high, wide = levels.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (rows * (high + gap) - gap, columns * (wide + gap) - gap)
    grid = torch.full((3, *size), 255, dtype=torch.uint8)
    for i, picture in enumerate(levels.byte()):
        top, left = i // columns * (high + gap), i % columns * (wide + gap)
        grid[:, top : top + high, left : left + wide] = picture
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class Pipeline:
    """A trained network, with all that one must know to draw with it.

    Raises:
        ValueError: if the prediction or the variance is not known.
    """

    network: nn.Module  # a UNet
    schedule: Schedule
    prediction: str = Prediction.EPS
    variance: str = "small"  # or "large", "learned"
    clip: bool = True  # guesses of x_0 to [-1, 1]

    def __post_init__(self) -> None:
        Prediction(self.prediction)
        if self.variance not in _VARIANCES:
            names = ", ".join(_VARIANCES)
            raise ValueError(
                f"variance must be one of {names}, got {self.variance!r}"
            )


_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_VARIANCES = {
    "small": "fixed_small",
    "large": "fixed_large",
    "learned": "learned_range",
}


def save_pipeline(pipeline: Pipeline, folder: str | Path) -> None:
    """Write a pipeline to a new folder, which diffusers opens as DDPMPipeline.

    Raises:
        ValueError: if diffusers has no such network or prediction.
        CheckpointError: if the folder exists, or cannot be written.
    """
    if pipeline.prediction not in _PREDICTIONS:
        raise ValueError(f"diffusers cannot predict {pipeline.prediction!r}")
    scheduler = schedule_to_config(pipeline.schedule) | {
        "_class_name": "DDPMScheduler",
        "prediction_type": _PREDICTIONS[pipeline.prediction],
        "variance_type": _VARIANCES[pipeline.variance],
        "clip_sample": pipeline.clip,
    }
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    with new_folder(folder) as partial:
        save_unet(pipeline.network, partial / "unet")
        (partial / "scheduler").mkdir()
        for name, content in (
            ("scheduler/scheduler_config.json", scheduler),
            ("model_index.json", index),
        ):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")


def load_pipeline(folder: str | Path) -> Pipeline:
    """Return the pipeline in a folder of diffusers' DDPM or DDIM pipeline.

    Their list of steps and their last one (`timestep_spacing`,
    `steps_offset`, `set_alpha_to_one`) are left aside: ours end at the data.

    Raises:
        ValueError: if it asks for what this book's sampler cannot do.
        CheckpointError: if a file is missing or not what it should be.
    """
    file = Path(folder, "scheduler", "scheduler_config.json")
    try:
        config = dict(json.loads(file.read_bytes()))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from None
    named = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
    spread = {theirs: ours for ours, theirs in _VARIANCES.items()}
    kind = config.get("prediction_type", "epsilon")
    width = config.get("variance_type", "fixed_small")
    for holds, what in (
        (kind in named, f"prediction_type {kind!r}"),
        (width in spread, f"variance_type {width!r}"),
        (not config.get("thresholding"), "thresholding"),
        (config.get("clip_sample_range", 1.0) == 1.0, "clip_sample_range"),
    ):
        if not holds:
            raise ValueError(f"{file}: {what} is not supported")
    try:
        schedule = schedule_from_config(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    return Pipeline(
        load_unet(Path(folder, "unet")),
        schedule,
        named[kind],
        spread[width],
        config.get("clip_sample", True),
    )


def bound_in_bits(
    pipeline: Pipeline,
    x0: Float[Tensor, "B C H W"],
    levels: int = 256,
    generator: torch.Generator | None = None,
    chunk: int = 10,
    label: Tensor | None = None,
) -> Float[Tensor, "B"]:
    """Return an estimate of the bound of each picture, in bits a dimension.

    With one noise for each step, hence T calls of the network, `chunk` of
    them at a time; `levels` as in `vlb`.

    Implements eq-bits (book/diffusion/pictures.md).
    """
    q, learned = pipeline.schedule, pipeline.variance == "learned"
    sigma = posterior_var(q) if pipeline.variance == "small" else q.beta

    def network(xt: Tensor, t: Tensor) -> Tensor:
        extra = () if label is None else (label.repeat(len(t) // len(label)),)
        return pipeline.network(xt, t, *extra)

    def model(xt: Tensor, t: Tensor) -> Any:
        said, share = network(xt, t), None
        if learned:
            said, share = halves(said)
        guess = guessed(said, xt, t, q, pipeline.prediction, pipeline.clip)
        if not learned:
            return guess
        return guess, (learned_log_var(share, t, q) / 2).exp()

    with evaluating(pipeline.network):
        nats = vlb(
            model,
            x0,
            q,
            None if learned else sigma.sqrt(),
            levels=levels,
            generator=generator,
            chunk=chunk,
        )
    return bits_per_dim(nats, x0[0].numel())


def _positive(text: str) -> int:
    """Return a whole number from 1 on, for the parser."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    """Return what understands the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tangled.diffusion.ddpm",
        description="Train a diffusion model on pictures, and draw with it.",
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    plain = argparse.ArgumentDefaultsHelpFormatter
    add = modes.add_parser(
        "train",
        formatter_class=plain,
        help="learn from pictures; goes on where it was stopped",
    ).add_argument
    add(
        "folder", type=Path, help="of the run; its part 'model' is the result"
    )
    add("--data", default="digits", help="digits, shapes or a folder")
    add("--size", type=_positive, help="cut and scale those of a folder")
    add("--grey", action="store_true", help="pictures of a folder in grey")
    add("--steps", type=_positive, default=2000, help="of the optimiser")
    add("--batch-size", type=_positive, default=64, help="pictures of a step")
    add("--lr", type=float, default=1e-3, help="learning rate")
    add(
        "--widths",
        type=_positive,
        nargs="+",
        default=[32, 64, 64],
        help="channels of each level, the finest first",
    )
    add(
        "--blocks",
        type=_positive,
        default=1,
        help="residual blocks of a level",
    )
    kinds = ("cosine", "linear", "scaled_linear", "sigmoid")
    add("--schedule", choices=kinds, default="cosine", help="of the noise")
    add("--T", type=_positive, default=1000, help="steps of diffusion")
    add(
        "--prediction",
        choices=[*_PREDICTIONS],
        default="v",
        help="what the network is asked for",
    )
    add("--learned-variance", action="store_true", help="train it as well")
    add("--ema", type=float, default=0.995, help="decay of the average")
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the layers that can",
    )
    add(
        "--save-every",
        type=_positive,
        default=200,
        help="steps from one checkpoint to the next",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="all that is drawn follows from it",
    )
    add = modes.add_parser(
        "sample", formatter_class=plain, help="draw a grid of pictures"
    ).add_argument
    add("model", type=Path, help="a folder that `train` or diffusers wrote")
    add("picture", type=Path, help="a file to write, such as grid.png")
    add("--count", type=_positive, default=16, help="pictures")
    add("--sampler", choices=("ddim", "ddpm"), default="ddim", help="method")
    add("--steps", type=_positive, default=50, help="calls of the network")
    add("--eta", type=float, help="share of fresh noise, of ddim only")
    add(
        "--size",
        type=_positive,
        help="of the pictures, if not what was learned",
    )
    add("--seed", type=int, default=0, help="of the noise")
    return parser


def _pictures(data: str, size: int | None, grey: bool) -> Any:
    """Return the data set of this name, or that of a folder."""
    if data not in ("digits", "shapes"):
        return PictureFolder(data, size, 1 if grey else 3)
    if size or grey:
        raise ValueError(f"--size and --grey are for a folder, not {data}")
    if data == "digits":
        return digits().train
    return shapes(12_000, 0, first=1000)


def _train(options: argparse.Namespace) -> None:
    """Train a network and write it, if it is not there yet."""
    data = _pictures(options.data, options.size, options.grey)
    result = options.folder / "model"
    if result.exists():
        raise CheckpointError(f"{result} exists: this run has ended")
    picture = (
        data[0] if isinstance(data, Dataset) else data[torch.arange(1)][0][0]
    )
    channels, side, wide = picture.shape
    if side != wide:
        raise ValueError(
            f"{options.data} has pictures of {wide} x {side}: name a size, "
            "and each is cut to a square"
        )
    widths = tuple(options.widths)
    if side % 2 ** (halvings := len(widths) - 1):
        raise ValueError(
            f"{len(widths)} widths halve pictures {halvings} times, but those "
            f"of {options.data} have the side {side}: name another --size"
        )
    schedule = schedule_named(options.schedule, options.T)
    if (left := schedule.signal[-1].item()) > 0.1:
        raise ValueError(
            f"--schedule {options.schedule} with --T {options.T} ends with "
            f"{left:.2f} of the signal, and drawing begins with none: take "
            "cosine, or more steps"
        )
    with process_group() as device:
        torch.manual_seed(options.seed)
        config = UNetConfig(
            widths=widths,
            channels=channels,
            outputs=channels * (1 + options.learned_variance),
            blocks=options.blocks,
            attention=(len(widths) - 1,),
            groups=math.gcd(8, *widths),
            head_dim=math.gcd(32, widths[-1]),
            size=side,
        )
        run = fit(
            UNet(config).to(device),
            data,
            schedule,
            options.steps,
            prediction=options.prediction,
            learned=options.learned_variance,
            lr=options.lr,
            batch_size=options.batch_size,
            ema_decay=options.ema,
            precision=options.precision,
            seed=options.seed,
            folder=options.folder / "run",
            save_every=options.save_every,
        )
    if run.rank == 0:
        width = "learned" if options.learned_variance else "small"
        pipeline = Pipeline(run.averaged, schedule, options.prediction, width)
        save_pipeline(pipeline, result)
        print(f"{result}: {run.step} steps, loss {run.log[-1]['loss']:.4f}")


def _sample(options: argparse.Namespace) -> None:
    """Draw pictures and write them as one."""
    if options.picture.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{options.picture} has no ending of a picture file")
    if not options.picture.parent.is_dir():
        raise ValueError(f"{options.picture.parent} is not a folder")
    if options.sampler == "ddpm" and options.eta is not None:
        raise ValueError(
            "--eta is for --sampler ddim: ddpm has its own noise"
        )
    pipeline = load_pipeline(options.model)
    config = pipeline.network.config
    size = options.size or config.size
    if size is None:
        raise ValueError(f"{options.model} does not say a size: name one")
    if config.classes is not None:
        raise ValueError(f"{options.model} asks for labels, which need code")
    with process_group() as device:
        network = pipeline.network.to(device)
        generator = torch.Generator(device).manual_seed(options.seed)
        noise = torch.empty(
            options.count, config.channels, size, size, device=device
        ).normal_(generator=generator)
        learned = pipeline.variance == "learned"
        common = {
            "schedule": pipeline.schedule,
            "steps": step_list(pipeline.schedule.T, options.steps),
            "prediction": pipeline.prediction,
            "clip": pipeline.clip,
            "generator": generator,
            "progress": True,
        }
        if options.sampler == "ddpm":
            x0 = ddpm_sample(
                network, noise, variance=pipeline.variance, **common
            )
        else:
            x0 = ddim_sample(
                (lambda x, t: halves(network(x, t))[0])
                if learned
                else network,
                noise,
                eta=options.eta or 0.0,
                **common,
            )
    columns = math.ceil(options.count**0.5)
    picture_grid(x0, columns).save(options.picture)
    print(f"{options.picture}: {options.count} pictures of {size} x {size}")


def command(arguments: Sequence[str] | None = None) -> int:
    """Train or sample, as the arguments say; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        {"train": _train, "sample": _sample}[options.mode](options)
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except (
        CheckpointError,
        FloatingPointError,
        OSError,
        TrainingError,
        ValueError,
    ) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
