"""Make the network of coloured shapes that the book loads.

Run `python benchmarks/shapes.py`: an hour on one core. It may be interrupted, and goes on where
it was. The result is the folder book/diffusion/shapes-ddpm: weights in half precision and their
configuration, as the library diffusers writes them, what the run was, and two pictures: six samples
on their way, and sixteen in 50 steps of DDIM.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.optim import AdamW

from tangled.diffusion.ddim import ddim_sample
from tangled.diffusion.ddpm import (
    ddpm_losses,
    ddpm_move,
    respaced,
    reverse_chain,
)
from tangled.diffusion.pictures import picture_grid
from tangled.diffusion.schedule import Schedule, step_list
from tangled.diffusion.unet import UNet, UNetConfig, load_unet, save_unet
from tangled.foundations.training import Training, train, warmup_cosine
from tangled.workshop.data import shapes

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "book/diffusion/shapes-ddpm"
SCHEDULE = Schedule.cosine(1000)
SEED = 1  # of the pictures that are drawn
PICTURES, FIRST, STEPS = 12_000, 1000, 3400  # the first 1,000 are for tests


def way(network: torch.nn.Module) -> Image.Image:
    """Return a picture of six samples on their way, one a row."""
    generator = torch.Generator().manual_seed(SEED)
    steps = np.linspace(1000, 1, 200).round().astype(int).tolist()
    noise = torch.randn(6, 3, 32, 32, generator=generator)
    move = ddpm_move(
        respaced(SCHEDULE, steps), "v", clip=True, generator=generator
    )
    states = [noise, *reverse_chain(network, noise, steps, move)]
    shown = [states[i] for i in (0, 90, 120, 140, 155, 170, 185, 200)]
    rows = torch.stack(shown, 1).flatten(
        0, 1
    )  # the states of a sample beside each other
    return picture_grid(rows, len(shown), gap=4)


def write(network: UNet, log: list[dict[str, Any]]) -> None:
    """Write the weights, what the run was, and two pictures."""
    shutil.rmtree(TARGET, ignore_errors=True)
    save_unet(network.half(), TARGET)
    told = {
        "pictures": PICTURES,
        "first": FIRST,
        "steps": STEPS,
        "schedule": "cosine",
        "prediction": "v",
        "losses": [
            round(float(np.mean([row["loss"] for row in log[i : i + 10]])), 5)
            for i in range(0, len(log), 10)
        ],
    }
    (TARGET / "training.json").write_text(json.dumps(told, indent=2) + "\n")
    kept = load_unet(TARGET)
    way(kept).save(TARGET / "way.png", optimize=True)
    generator = torch.Generator().manual_seed(SEED)
    drawn = ddim_sample(
        kept,
        torch.randn(16, 3, 32, 32, generator=generator),
        SCHEDULE,
        step_list(1000, 50),
        prediction="v",
        clip=True,
    )
    picture_grid(drawn, 4).resize((272, 272), 0).save(
        TARGET / "grid.png", optimize=True
    )


def main() -> None:
    """Train, save, and draw."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = UNet(
        UNetConfig(
            widths=(32, 64, 64),
            blocks=1,
            attention=(2,),
            head_dim=32,
            groups=8,
            size=32,
        )
    )
    run = train(
        network,
        ddpm_losses(SCHEDULE, "v"),
        shapes(PICTURES, 0, first=FIRST),
        AdamW(network.parameters(), lr=1e-3, weight_decay=0),
        Training(STEPS, ema_decay=0.998, precision="bfloat16"),
        lr_factor=warmup_cosine(4000, warmup=100),  # stopped before its end
        folder=ROOT / "_build/shapes",
        save_every=200,
        log_every=20,
    )
    write(run.averaged, run.log)


if __name__ == "__main__":
    main()
