"""Gaussian mixtures, with density, score and denoiser in closed form.

Tangled from book/diffusion/gaussian.md.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangled.diffusion.gaussian import linear_gaussian_posterior, log_normal

__all__ = ["GaussianMixture", "energy_distance"]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The distribution with density sum_j w_j N(x; m_j, s_j^2 I).

    A part of deviation 0 is a point; a mixture with points has no density.

    Raises:
        ValueError: if the shapes do not fit, the weights are not positive
            with sum 1, or a deviation is negative.

    Implements def-gaussian-mixture (book/diffusion/gaussian.md).
    """

    weights: Float[Tensor, "J"]
    means: Float[Tensor, "J D"]
    stds: Float[Tensor, "J"]

    def __post_init__(self) -> None:
        shapes = [list(table.shape) for table in vars(self).values()]
        J, both = shapes[0], shapes[1]
        if len(both) != 2 or not J == shapes[2] == both[:1]:
            raise ValueError(
                f"weights, means, stds must be [J], [J, D], [J], got {shapes}"
            )
        total = self.weights.double().sum().item()
        if not (self.weights > 0).all() or abs(total - 1) > 1e-6:
            raise ValueError(
                f"weights must be positive with sum 1, got sum {total}"
            )
        if not (self.stds >= 0).all():
            raise ValueError("stds must not be negative")

    def _log_parts(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        """Return ln(w_j N(x; m_j, s_j^2 I)), in the dtype of x."""
        if not (self.stds > 0).all():
            raise ValueError("stds must be positive for a density")
        means, variances = self.means.to(x), self.stds.to(x) ** 2
        each = log_normal(x[:, None], means, variances[:, None])
        return self.weights.to(x).log() + each.sum(-1)

    def log_prob(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        """Return the log density at each x, in nats, summed over D."""
        return self._log_parts(x).logsumexp(-1)

    def responsibilities(
        self, x: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B J"]:
        """Return the probability of each part, given x."""
        return self._log_parts(x).softmax(-1)

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n D"]:
        """Return n independent draws, in the dtype of the means."""
        j = self.weights.multinomial(n, replacement=True, generator=generator)
        xi = torch.empty_like(self.means[j]).normal_(generator=generator)
        return self.means[j] + self.stds[j, None] * xi

    def score(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the gradient of the log density at each x.

        Implements eq-mixture-score (book/diffusion/gaussian.md).
        """
        pull = (self.means.to(x) - x[:, None]) / self.stds.to(x)[:, None] ** 2
        return (self.responsibilities(x)[..., None] * pull).sum(1)

    def diffused(
        self,
        signal: Float[Tensor, ""] | float,
        noise_std: Float[Tensor, ""] | float,
    ) -> "GaussianMixture":
        """Return the mixture of signal x_0 + noise_std eps.

        Implements eq-mixture-diffused (book/diffusion/gaussian.md).
        """
        variances = (signal * self.stds) ** 2 + noise_std**2
        return GaussianMixture(
            self.weights, signal * self.means, variances.sqrt()
        )

    def denoised(
        self,
        xt: Float[Tensor, "B D"],
        signal: Float[Tensor, ""] | float,
        noise_std: Float[Tensor, ""] | float,
    ) -> Float[Tensor, "B D"]:
        """Return E[x_0 | x_t] for x_t = signal x_0 + noise_std eps.

        Implements eq-mixture-denoised (book/diffusion/gaussian.md).
        """
        means, variances = self.means.to(xt), self.stds.to(xt)[:, None] ** 2
        of_part, _ = linear_gaussian_posterior(
            means, variances, xt[:, None], signal, noise_std**2
        )
        share = self.diffused(signal, noise_std).responsibilities(xt)
        return (share[..., None] * of_part).sum(1)


def energy_distance(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]
) -> float:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'| of two samples.

    The means run over all pairs, a point with itself included: never
    negative, and above 0 even for two samples of one distribution.

    Raises:
        ValueError: if a sample is empty or the dimensions differ.

    Source: Szekely and Rizzo (2013).

    Implements eq-energy-distance (book/diffusion/gaussian.md).
    """
    if len(x) == 0 or len(y) == 0 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            "x and y must be samples [N, D] and [M, D], not empty, "
            f"got {list(x.shape)} and {list(y.shape)}"
        )

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        # The faster way, by a matrix product, loses digits of close pairs.
        exact = "donot_use_mm_for_euclid_dist"
        rows = [
            torch.cdist(part, b, compute_mode=exact).mean(1)
            for part in a.split(1024)
        ]
        return torch.cat(rows).mean()

    within = mean_distance(x, x) + mean_distance(y, y)
    return (2 * mean_distance(x, y) - within).item()
