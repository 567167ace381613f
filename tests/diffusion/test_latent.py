"""The small VAE and its bound: exact on a linear model, and what it refuses."""

import math

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
        return mean + self.error, variance.log().expand(x.shape)

    def decode(self, z):
        return self.c * z, torch.tensor(self.r, dtype=z.dtype).log()


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
    variance = Linear(0.0).encode(x[:1])[1][0].exp()
    gap = gaussian_kl(0.4, variance, 0.0, variance).sum()
    assert abs(standard_score(loss, (evidence + gap).item())) < 5
    assert standard_score(loss, evidence.item()) > 20


def test_terms_are_sums_over_dimensions():
    torch.manual_seed(0)
    vae = VAE(dim=5, latent_dim=2)
    x, eps = noise(4, 5, dtype=torch.float32), noise(4, 2).float()
    loss = negative_elbo(vae, x, eps)
    mean, log_var = vae.encode(x)
    decoded, log_r = vae.decode(mean + log_var.exp().sqrt() * eps)
    expected = gaussian_kl(mean, log_var.exp(), 0.0, 1.0).sum(1)
    expected = expected - log_normal(x, decoded, log_r.exp()).sum(1)
    assert loss.shape == (4,)
    assert_close(loss, expected)


def test_the_encoder_gives_means_and_the_logarithms_of_variances():
    vae = VAE(dim=3, latent_dim=2)
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
        vae.encoder[-1].bias.copy_(torch.tensor([0.5, -1.0, -2.0, 0.0]))
    mean, log_var = vae.encode(torch.ones(4, 3))
    assert_close(mean, torch.tensor([0.5, -1.0]).expand(4, 2))
    assert_close(log_var, torch.tensor([-2.0, 0.0]).expand(4, 2))


@pytest.mark.verifies("eq-negative-elbo", "prop-reparameterisation-gradient")
def test_gradients_are_finite_differences_of_the_loss():
    """In every parameter, and in mean and log variance of q on their own."""
    torch.manual_seed(0)
    vae = VAE(dim=3, latent_dim=2, hidden=8).double()
    x, eps = noise(16, 3), noise(16, 2, seed=1)
    negative_elbo(vae, x, eps).sum().backward()
    cases = [
        (p, noise(p.numel(), seed=2).view(p.shape)) for p in vae.parameters()
    ]
    eye = torch.eye(4, dtype=torch.float64)
    cases += [(vae.encoder[-1].bias, direction) for direction in eye]
    for parameter, step in cases:
        expected = (parameter.grad * step).sum()
        values = []
        with torch.no_grad():
            for move in (1e-5, -2e-5, 1e-5):
                parameter.add_(move * step)
                values.append(negative_elbo(vae, x, eps).sum())
        found = (values[0] - values[1]) / 2e-5
        assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.verifies("eq-negative-elbo")
@pytest.mark.parametrize("log_var", [-110.0, -30.0, 0.0, 30.0, 100.0])
def test_a_log_variance_of_any_size_gives_the_bound(log_var):
    """An encoder that explodes: right in float64, never NaN in float32."""
    vae = VAE(dim=2, latent_dim=1)
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
        vae.encoder[-1].bias.copy_(torch.tensor([0.5, log_var]))
        vae.decoder[-1].weight.zero_()
        vae.decoder[-1].bias.fill_(0.5)
    x = noise(3, 2)
    misfit = -log_normal(x, 0.5, 0.25).sum(1)
    price = (math.exp(log_var) + 0.25 - 1 - log_var) / 2
    assert not negative_elbo(vae, x.float(), x[:, :1].float()).isnan().any()
    assert_close(
        negative_elbo(vae.double(), x, x[:, :1]),
        misfit + price,
        rtol=1e-6,  # the decoder's log std begins in float32
        atol=1e-6,
    )


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
    away = (x - 0.5) / 3
    assert abs(standard_score(away, 0.0, 1.0)) < 5
    assert abs(standard_score(away**2, 1.0, 2**0.5)) < 5
    inside = (away.abs() < 1).double()
    assert abs(standard_score(inside, 0.682689, 0.465428)) < 5


@pytest.mark.verifies("def-vae")
def test_a_draw_is_the_decoder_at_a_standard_normal_latent():
    torch.manual_seed(0)
    vae = VAE(dim=3, latent_dim=2, hidden=8, std=0.7).double()
    n = 100_000  # so many that some noise is beyond 4 deviations
    x = vae.sample(n, torch.Generator().manual_seed(1))
    again = torch.Generator().manual_seed(1)
    z = torch.randn(n, 2, generator=again, dtype=torch.float64)
    xi = torch.randn(n, 3, generator=again, dtype=torch.float64)
    assert (xi.abs() > 4).any()
    expected = vae.decoder(z) + vae.log_std.exp() * xi
    assert_close(x, expected.detach(), rtol=0, atol=1e-14)


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
