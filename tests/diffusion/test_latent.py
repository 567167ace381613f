"""The small VAE and its bound: exact on a linear model, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

from tangled.diffusion.gaussian import (
    gaussian_kl,
    linear_gaussian_posterior,
    log_normal,
)
from tangled.diffusion.latent import VAE, negative_elbo
from tangled.workshop.statistics import standard_score


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


class Linear(VAE):
    """x = c z + noise of variance r, with a guess that may be the posterior."""

    def __init__(self, error: float) -> None:
        super().__init__(dim=3, latent_dim=3)
        self.c, self.r, self.error = 0.8, 0.5, error

    def encode(self, x):
        mean, variance = linear_gaussian_posterior(
            0.0, 1.0, x, self.c, self.r
        )
        return mean + self.error, variance.expand(x.shape)

    def decode(self, z):
        return self.c * z, torch.tensor(self.r, dtype=z.dtype)


@pytest.mark.verifies("thm-elbo-identity", "eq-negative-elbo")
def test_with_the_posterior_every_draw_gives_the_evidence_on_average():
    x = noise(1, 3).expand(50_000, 3)
    loss = negative_elbo(Linear(0.0), x, noise(50_000, 3, seed=1))
    evidence = -log_normal(x[0], 0.0, 0.8**2 + 0.5).sum()
    assert abs(standard_score(loss, evidence.item())) < 5


@pytest.mark.verifies("thm-elbo-identity", "eq-negative-elbo")
def test_a_wrong_guess_costs_its_divergence():
    x = noise(1, 3).expand(50_000, 3)
    loss = negative_elbo(Linear(0.4), x, noise(50_000, 3, seed=1))
    evidence = -log_normal(x[0], 0.0, 0.8**2 + 0.5).sum()
    _, variance = Linear(0.0).encode(x[:1])
    gap = gaussian_kl(0.4, variance[0], 0.0, variance[0]).sum()
    assert abs(standard_score(loss, (evidence + gap).item())) < 5
    assert standard_score(loss, evidence.item()) > 20


def test_terms_are_sums_over_dimensions():
    torch.manual_seed(0)
    vae = VAE(dim=5, latent_dim=2)
    x, eps = noise(4, 5, dtype=torch.float32), noise(4, 2).float()
    loss = negative_elbo(vae, x, eps)
    mean, variance = vae.encode(x)
    decoded, r = vae.decode(mean + variance.sqrt() * eps)
    expected = gaussian_kl(mean, variance, 0.0, 1.0).sum(1)
    expected = expected - log_normal(x, decoded, r).sum(1)
    assert loss.shape == (4,)
    assert_close(loss, expected)


def test_the_encoder_gives_means_and_the_logarithms_of_variances():
    vae = VAE(dim=3, latent_dim=2)
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
        vae.encoder[-1].bias.copy_(torch.tensor([0.5, -1.0, -2.0, 0.0]))
    mean, variance = vae.encode(torch.ones(4, 3))
    assert_close(mean, torch.tensor([0.5, -1.0]).expand(4, 2))
    assert_close(variance, torch.tensor([-2.0, 0.0]).exp().expand(4, 2))


def test_gradients_reach_every_parameter():
    vae = VAE(dim=2, latent_dim=2)
    negative_elbo(
        vae, noise(8, 2).float(), noise(8, 2).float()
    ).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_draws_have_shape_and_dtype_of_the_model_and_no_gradient(dtype):
    vae = VAE(dim=3, latent_dim=2, hidden=8).to(dtype)
    one, two = (
        vae.sample(5, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert (one.shape, one.dtype) == ((5, 3), dtype)
    assert torch.equal(one, two)
    assert not one.requires_grad


def test_draws_contain_the_noise_of_the_decoder():
    vae = VAE(dim=1, latent_dim=1, std=3.0)
    with torch.no_grad():
        vae.decoder[-1].weight.zero_()
        vae.decoder[-1].bias.fill_(0.5)
    x = vae.sample(20_000, torch.Generator().manual_seed(0))[:, 0]
    assert abs(standard_score(x, 0.5)) < 5
    assert abs(standard_score((x - 0.5) ** 2, 9.0)) < 5


@pytest.mark.gpu
def test_the_model_works_on_a_device():
    vae = VAE(dim=2, latent_dim=2).cuda()
    x = noise(4, 2).float().cuda()
    assert negative_elbo(vae, x, x).is_cuda
    assert vae.sample(3, torch.Generator("cuda").manual_seed(0)).is_cuda


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("shape", [(4, 3), (3, 2), (2,)])
def test_noise_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"^eps must have shape \[4, 2\]"):
        negative_elbo(VAE(5, 2), torch.zeros(4, 5), torch.zeros(shape))


def test_a_start_deviation_must_be_positive():
    with pytest.raises(ValueError, match=r"^std must be positive, got 0\.0$"):
        VAE(2, 2, std=0.0)
