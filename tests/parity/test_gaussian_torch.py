"""Densities and divergences against torch.distributions, SciPy and scikit-learn."""

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.testing import assert_close

from tangled.diffusion.gaussian import (
    gaussian_kl,
    log_normal,
    multivariate_kl,
)
from tangled.diffusion.mixture import GaussianMixture, energy_distance


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_log_density():
    x, mean, std = noise(5, 7), noise(7, seed=1), noise(7, seed=2).exp()
    theirs = Normal(mean, std).log_prob(x)
    assert_close(log_normal(x, mean, std**2), theirs, rtol=1e-13, atol=1e-13)


def test_elementwise_divergence():
    mean1, mean2 = noise(2, 20)
    std1, std2 = noise(2, 20, seed=1).exp()
    theirs = kl_divergence(Normal(mean1, std1), Normal(mean2, std2))
    ours = gaussian_kl(mean1, std1**2, mean2, std2**2)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_full_divergence(dim):
    mean1, mean2 = noise(2, 4, dim)
    roots = noise(2, 4, dim, dim, seed=1)
    eye = torch.eye(dim, dtype=torch.float64)
    cov1, cov2 = roots @ roots.mT + eye
    theirs = kl_divergence(
        MultivariateNormal(mean1, cov1), MultivariateNormal(mean2, cov2)
    )
    ours = multivariate_kl(mean1, cov1, mean2, cov2)
    assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_mixture_against_torch_and_scikit_learn():
    weights, means = noise(3, seed=1).softmax(0), 2 * noise(3, 2, seed=2)
    stds, x = noise(3, seed=3).exp(), 2 * noise(50, 2)
    ours = GaussianMixture(weights, means, stds)
    parts = Independent(Normal(means, stds[:, None].expand(3, 2)), 1)
    theirs = MixtureSameFamily(Categorical(weights), parts)
    assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-12, atol=1e-12)

    learn = pytest.importorskip("sklearn.mixture")
    model = learn.GaussianMixture(3, covariance_type="spherical")
    model.weights_, model.means_ = weights.numpy(), means.numpy()
    model.precisions_cholesky_ = 1 / stds.numpy()
    assert_close(
        ours.log_prob(x), torch.tensor(model.score_samples(x.numpy()))
    )
    assert_close(
        ours.responsibilities(x), torch.tensor(model.predict_proba(x.numpy()))
    )


def test_energy_distance_is_the_square_of_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    x, y = noise(300), 1.3 * noise(200, seed=1) + 0.2
    theirs = stats.energy_distance(x.numpy(), y.numpy())
    assert energy_distance(x[:, None], y[:, None]) == pytest.approx(
        theirs**2, rel=1e-10
    )
