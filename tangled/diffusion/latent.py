"""A small variational autoencoder and its bound.

Tangled from book/diffusion/gaussian.md.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["VAE", "negative_elbo"]


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return a network with two hidden layers of one width."""
    first, middle = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
    last = nn.Linear(hidden, outputs)
    return nn.Sequential(first, nn.SiLU(), middle, nn.SiLU(), last)


class VAE(nn.Module):
    """A small variational autoencoder for data [B, D].

    The model is z ~ N(0, I), x | z ~ N(decoder(z), std^2 I), and `std` is
    where the one learned deviation starts. The encoder gives a guess
    N(mean, diagonal variance) of z; both networks are `hidden` wide.

    Raises:
        ValueError: if std is not positive.

    Source: Kingma and Welling (2014).

    Implements def-vae (book/diffusion/gaussian.md).
    """

    def __init__(
        self, dim: int, latent_dim: int, hidden: int = 64, std: float = 0.5
    ) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.latent_dim = latent_dim
        self.encoder = _mlp(dim, hidden, 2 * latent_dim)
        self.decoder = _mlp(latent_dim, hidden, dim)
        self.log_std = nn.Parameter(torch.tensor(std).log())

    def encode(
        self, x: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B d_z"], Float[Tensor, "B d_z"]]:
        """Return mean and log variance of q(z | x)."""
        mean, log_var = self.encoder(x).chunk(2, dim=-1)
        return mean, log_var

    def decode(
        self, z: Float[Tensor, "B d_z"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, ""]]:
        """Return mean and log variance of p(x | z)."""
        return self.decoder(z), 2 * self.log_std

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n D"]:
        """Return n draws: a latent, its mean, and the noise of p(x | z)."""
        z = self.log_std.new_empty(n, self.latent_dim)
        mean, log_var = self.decode(z.normal_(generator=generator))
        xi = torch.empty_like(mean).normal_(generator=generator)
        return mean + (log_var / 2).exp() * xi


def negative_elbo(
    vae: VAE, x: Float[Tensor, "B D"], eps: Float[Tensor, "B d_z"]
) -> Float[Tensor, "B"]:
    """Return an estimate of the negative ELBO of each sample.

    In nats, summed over dimensions; unbiased for standard normal `eps`.

    Raises:
        ValueError: if eps is not one latent for each sample.

    Implements eq-negative-elbo (book/diffusion/gaussian.md).
    """
    wanted, got = [len(x), vae.latent_dim], list(eps.shape)
    if got != wanted:
        raise ValueError(f"eps must have shape {wanted}, got {got}")
    mean, log_var = vae.encode(x)
    decoded, log_r = vae.decode(mean + (log_var / 2).exp() * eps)
    square = (x - decoded) ** 2 / log_r.exp()
    reconstruction = (square + log_r + math.log(2 * math.pi)).sum(1) / 2
    price = (log_var.exp() + mean**2 - 1 - log_var).sum(1) / 2
    return reconstruction + price
