"""A small variational autoencoder and its bound.

Tangled from book/diffusion/gaussian.md.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["VAE", "negative_elbo"]


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return a network with two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outputs),
    )


class VAE(nn.Module):
    """A small variational autoencoder for data [B, D].

    The model is z ~ N(0, I), x | z ~ N(decoder(z), std^2 I) with one learned
    std. The encoder gives q(z | x) = N(mean, diagonal variance).

    Args:
        dim: data dimension D.
        latent_dim: dimension of the latent z.
        hidden: width of the two hidden layers on either side.
        std: where the standard deviation of the decoder starts.

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
        self.encoder = _network(dim, hidden, 2 * latent_dim)
        self.decoder = _network(latent_dim, hidden, dim)
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
    """Return the negative ELBO of each sample, with one latent each.

    In nats, summed over the dimensions of the sample and of the latent; an
    unbiased estimate over the standard normal `eps`.

    Raises:
        ValueError: if eps is not one latent for each sample.

    Implements eq-negative-elbo (book/diffusion/gaussian.md).
    """
    if eps.shape != (len(x), vae.latent_dim):
        raise ValueError(
            f"eps must have shape {[len(x), vae.latent_dim]}, one latent for "
            f"each sample, got {list(eps.shape)}"
        )
    mean, log_var = vae.encode(x)
    decoded, log_r = vae.decode(mean + (log_var / 2).exp() * eps)
    square = (x - decoded) ** 2 / log_r.exp()
    reconstruction = (square + log_r + math.log(2 * math.pi)).sum(1) / 2
    price = (log_var.exp() + mean**2 - 1 - log_var).sum(1) / 2
    return reconstruction + price
