"""Time the U-Net and the sampling loop beside those of the library diffusers.

    python benchmarks/unet.py [--device cuda]

The network is the one of the coloured shapes; ours and `UNet2DModel` have equal weights. All take
turns, on one thread of the CPU; told is the median over the rounds of the ratio of their times,
on the CPU those of the processor.
The share of the network is the time of its calls alone over that of the sampling loop. The peak is
a product of two matrices of 1024 by 1024; the training step is set beside it by the operations that
torch counts in both. Two tables are written to `benchmarks/results.md`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from results import record
from torch.utils.flop_counter import FlopCounterMode
from turns import ratio, turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.diffusion.ddpm import ddpm_sample  # noqa: E402
from tangled.diffusion.schedule import Schedule, step_list  # noqa: E402
from tangled.diffusion.unet import UNet, UNetConfig  # noqa: E402

STEPS = 20
SIDE = 1024  # of the matrices whose product is the peak


def training_step(
    model: torch.nn.Module, x: torch.Tensor, t: torch.Tensor
) -> None:
    """Make one step forward and back."""
    output = model(x, t)
    output = getattr(output, "sample", output)
    output.square().mean().backward()
    model.zero_grad()


def in_bfloat16(
    model: torch.nn.Module, x: torch.Tensor, t: torch.Tensor
) -> None:
    """Make such a step with the forward pass in bfloat16 where autocast has it."""
    with torch.autocast(x.device.type, torch.bfloat16):
        training_step(model, x, t)


def operations(work: Callable[[], object]) -> int:
    """Return how many multiplications and additions torch counts."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description="Time the U-Net.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = UNet(
        UNetConfig(
            widths=(32, 64, 64),
            channels=1,
            blocks=1,
            attention=(2,),
            head_dim=32,
            groups=8,
            size=28,
        )
    ).to(device)
    theirs = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
    ).to(device)
    theirs.load_state_dict(ours.state_dict())
    schedule = Schedule.linear(1000)
    pipeline = diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler(1000))
    pipeline.set_progress_bar_config(disable=True)
    steps = step_list(1000, STEPS, "leading")
    matrix = torch.randn(SIDE, SIDE, device=device)
    rows, steps_alone = [], []
    for batch in (1, 8, 32):
        x = torch.randn(batch, 1, 28, 28, device=device)
        t = torch.full((batch,), 500, device=device)

        def calls(x: torch.Tensor = x, t: torch.Tensor = t) -> None:
            with torch.no_grad():
                for _ in steps:
                    ours(x, t)

        found = turns(
            {
                "calls": calls,
                "loop": lambda x=x: ddpm_sample(
                    ours, x, schedule, steps, clip=True
                ),
                "pipeline": lambda n=batch: pipeline(
                    n, num_inference_steps=STEPS, output_type="pt"
                ),
                "our step": lambda x=x, t=t: training_step(
                    ours.train(), x, t
                ),
                "their step": lambda x=x, t=t: training_step(
                    theirs.train(), x, t
                ),
                "bfloat16": lambda x=x, t=t: in_bfloat16(ours.train(), x, t),
                "peak": lambda: matrix @ matrix,
            },
            options.rounds,
            device,
        )
        share = [
            a / b for a, b in zip(found["calls"], found["loop"], strict=True)
        ]
        count = operations(lambda x=x, t=t: training_step(ours.train(), x, t))
        peak = [
            count / step / (2 * SIDE**3 / product)
            for step, product in zip(
                found["our step"], found["peak"], strict=True
            )
        ]
        rows.append(
            f"| {batch} | {1000 * statistics.median(found['loop']) / STEPS:.1f} "
            f"| {statistics.median(share):.1%} "
            f"| {ratio(found['loop'], found['pipeline'])} "
            f"| {ratio(found['our step'], found['their step'])} |"
        )
        steps_alone.append(
            f"| {batch} | {1000 * statistics.median(found['our step']):.0f} "
            f"| {statistics.median(peak):.0%} "
            f"| {ratio(found['bfloat16'], found['our step'])} |"
        )
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else "one thread of the CPU"
    )
    kind = "GPU" if device.type == "cuda" else "CPU"
    count = sum(p.numel() for p in ours.parameters())
    record(
        f"# The U-Net and the sampling loop ({kind})\n\n"
        f"Pictures of 28 × 28 in one channel, {count:,} parameters, "
        f"float32,\n{name}, torch {torch.__version__}, diffusers {diffusers.__version__}; "
        f"{STEPS} steps of DDPM.\nMedian of {options.rounds} rounds in which all took turns, "
        "± half of the interquartile range.\nBy `python benchmarks/unet.py`.\n\n"
        "| pictures | ms a step | share of the network | loop / their pipeline | "
        "training step / theirs |\n| --: | --: | --: | --: | --: |\n"
        + "\n".join(rows)
        + "\n"
    )
    record(
        f"# A training step of the U-Net ({kind})\n\n"
        "The same network and rounds. Milliseconds of a step forward and back; its operations\n"
        f"in a second over those of a product of matrices of {SIDE} by {SIDE}; the time under\n"
        "autocast to bfloat16 over that in float32. By `python benchmarks/unet.py`.\n\n"
        "| pictures | ms | of the peak | bfloat16 / float32 |\n| --: | --: | --: | --: |\n"
        + "\n".join(steps_alone)
        + "\n"
    )


if __name__ == "__main__":
    main()
