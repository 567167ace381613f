"""Time the bound of a model of 1,000 steps, beside the way in which guided-diffusion takes it.

    python benchmarks/bound.py

A thousand digits of 8 by 8, in batches that each way works through in turn, on one thread of the
CPU; told are the seconds of the processor of ours, and the median of the ratios of the batches.
Their way (github.com/openai/guided-diffusion, `calc_bpd_loop` and `_vb_terms_bpd`) is written here
from the papers (Ho et al. 2020, equations 5 to 13; Nichol and Dhariwal 2021, section 3.3): a loop
over the steps, one call of the network for each, and at each both a divergence and a decoder, of
which one is kept. The network and the noise are the same, and so are the numbers. The table is
written to `benchmarks/results.md`.
"""

import argparse
import math
import sys
from pathlib import Path
from time import process_time

import torch
from results import record
from torch import Tensor
from turns import ratio

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.diffusion.elbo import (  # noqa: E402
    bound_terms,
    posterior_table,
    posterior_var,
)
from tangled.diffusion.prediction import convert  # noqa: E402
from tangled.diffusion.schedule import Schedule  # noqa: E402
from tangled.diffusion.unet import UNet, UNetConfig  # noqa: E402
from tangled.workshop.data import digits  # noqa: E402

Q = Schedule.linear(1000)
CHUNKS = (1, 10)  # steps of the batch that the network sees at once


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Return the entries of a table in float64 as numbers for each sample, in its shape."""
    return table[t].float().reshape(-1, 1, 1, 1).expand(like.shape)


def divergence(
    mean: Tensor, log_var: Tensor, mean_2: Tensor, log_var_2: Tensor
) -> Tensor:
    """Return the divergence of normal distributions, in nats, elementwise."""
    ratio = (log_var - log_var_2).exp()
    distance = (mean - mean_2) ** 2 * (-log_var_2).exp()
    return (log_var_2 - log_var - 1 + ratio + distance) / 2


def decoder(x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log mass of the 256 levels, elementwise."""
    scale = (-log_std).exp()
    upper = torch.special.ndtr(scale * (x0 - mean + 1 / 255))
    lower = torch.special.ndtr(scale * (x0 - mean - 1 / 255))
    mass = torch.where(
        x0 < -0.999,
        upper,
        torch.where(x0 > 0.999, 1 - lower, upper - lower),
    )
    return mass.clamp(min=1e-12).log()


@torch.no_grad()
def their_way(network: UNet, x0: Tensor, noise: Tensor) -> Tensor:
    """Return the terms L_0..L_T of each sample, in bits for each number."""
    table, bits = posterior_table(Q), math.log(2)
    log_var = table.variance.clone()
    log_var[:2] = log_var[2]
    log_var = log_var.log()
    terms = []
    for step in reversed(range(1, Q.T + 1)):
        t = torch.full((len(x0),), step)
        eps = noise[step - 1]
        xt = at(Q.signal, t, x0) * x0 + at(Q.noise_std, t, x0) * eps
        said = network(xt, t)
        guess = at(1 / Q.signal, t, x0) * xt - at(Q.rho, t, x0) * said
        true_mean, mean = (
            at(table.from_data, t, x0) * x + at(table.from_noisy, t, x0) * xt
            for x in (x0, guess)
        )
        spread = at(log_var, t, x0)
        kl = divergence(true_mean, spread, mean, spread).flatten(1).mean(1)
        nll = -decoder(x0, mean, spread / 2).flatten(1).mean(1)
        terms.append(torch.where(t == 1, nll, kl) / bits)
        # It tells the errors of the guess and of the noise as well.
        back = (xt - at(Q.signal, t, x0) * guess) / at(Q.noise_std, t, x0)
        for error in (guess - x0, back - eps):
            error.square().flatten(1).mean(1)
    power = Q.alpha_bar[-1].float()
    end = divergence(
        power.sqrt() * x0,
        (1 - power).log().expand(x0.shape),
        torch.zeros(()),
        torch.zeros(()),
    )
    return torch.stack([*terms[::-1], end.flatten(1).mean(1) / bits], 1)


@torch.no_grad()
def our_way(network: UNet, x0: Tensor, seed: int, chunk: int) -> Tensor:
    """Return the same, by the book's function."""

    def model(xt: Tensor, t: Tensor) -> Tensor:
        return convert(network(xt, t), xt, t, Q, "eps", "x0")

    terms = bound_terms(
        model,
        x0,
        Q,
        posterior_var(Q).sqrt(),
        generator=torch.Generator().manual_seed(seed),
        chunk=chunk,
    )
    return terms / (x0[0].numel() * math.log(2))


def same_noise(x0: Tensor, seed: int) -> Tensor:
    """Return the noise that `bound_terms` draws for t = 1..T."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randn(x0.shape, generator=generator) for _ in range(Q.T)]
    )


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Time the bound.")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = UNetConfig(
        widths=(16, 32),
        channels=1,
        blocks=1,
        attention=(1,),
        head_dim=16,
        groups=8,
        size=8,
    )
    network = UNet(config).eval()
    pictures = digits().train[torch.arange(options.pictures)][0]
    pictures = ((pictures + 1) * 127.5).round() / 127.5 - 1  # on 256 levels
    seconds: dict[object, list[float]] = {"theirs": []}
    seconds |= {chunk: [] for chunk in CHUNKS}
    worst = 0.0
    their_way(network, pictures[:1], same_noise(pictures[:1], 0))  # warms up
    for seed, x0 in enumerate(pictures.split(options.batch)):
        noise = same_noise(x0, seed)
        works = {"theirs": lambda x=x0, e=noise: their_way(network, x, e)}
        works |= {
            n: lambda x=x0, s=seed, n=n: our_way(network, x, s, n)
            for n in CHUNKS
        }
        terms = {}
        for name, work in works.items():
            began = process_time()
            terms[name] = work()
            seconds[name].append(process_time() - began)
        exact = terms["theirs"][:, 1:]  # the decoder's mass is cut off there
        for n in CHUNKS:
            error = (terms[n][:, 1:] - exact).abs().max() / exact.abs().max()
            worst = max(worst, error.item())
    rows = []
    for n in CHUNKS:
        compared = ratio(seconds[n], seconds["theirs"])
        rows.append(f"| {n} | {sum(seconds[n]):.0f} | {compared} |")
    count = sum(p.numel() for p in network.parameters())
    record(
        "# The bound of a model of 1,000 steps (CPU)\n\n"
        f"{options.pictures:,} pictures of 8 × 8 in batches of {options.batch}, "
        f"{count:,} parameters, float32,\none thread of the CPU, torch "
        f"{torch.__version__}. Seconds of the processor; then the time over that of\n"
        "guided-diffusion's way, the median over the batches, which took turns, ± half of the\n"
        "interquartile range. The terms agree to "
        f"{worst:.0e} of the largest. By `python benchmarks/bound.py`.\n\n"
        "| steps in a call | seconds | ours / theirs |\n| --: | --: | --: |\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
