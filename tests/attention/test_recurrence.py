"""Laws of recurrent networks, of soft lookup, and of a translator that may look back."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tangled.attention.recurrence import (
    PAD,
    START,
    SYMBOLS,
    AdditiveScore,
    Elman,
    LuongScore,
    Seq2Seq,
    copy_task,
    lag_norms,
    lookup_weights,
    reverse_task,
    sequence_losses,
    shifted,
    soft_lookup,
)

SCORES = {
    "additive": AdditiveScore,
    "dot": lambda d: LuongScore(d, "dot"),
    "general": lambda d: LuongScore(d, "general"),
    "concat": lambda d: LuongScore(d, "concat"),
}
ALL = {"none": None, **SCORES}


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def translator(kind, d=8, vocab=9, seed=0):
    """Return a network with weights that are large enough to matter."""
    torch.manual_seed(seed)
    score = ALL[kind] and ALL[kind](d)
    model = Seq2Seq(vocab, d, score).double().eval()
    for weights in model.parameters():
        nn.init.normal_(weights, std=0.6)
    return model


def spectral(matrix):
    return torch.linalg.svdvals(matrix)[0]


# Recurrent networks


def test_the_hand_example():
    net = Elman(1, 1)
    for weights, value in zip(net.parameters(), (1.0, 0.0, 0.5), strict=True):
        nn.init.constant_(weights, value)
    x = torch.tensor([1.0, 0.0, 0.0])[:, None]
    states = [f"{h:.4f}" for h in net(x[None])[0, :, 0]]
    assert states == ["0.7616", "0.3634", "0.1797"]
    felt = lag_norms(net.step, x, torch.zeros(1))
    assert f"{felt[2]:.4f}" == "0.2100"


def test_a_sequence_may_be_read_in_two_parts():
    net, x = Elman(3, 5).double(), noise(2, 9, 3)
    whole, first = net(x), net(x[:, :4])
    assert_close(first, whole[:, :4])
    assert_close(net(x[:, 4:], first[:, -1]), whole[:, 4:])


def test_a_state_sees_the_past_and_not_the_future():
    net, x = Elman(3, 5).double(), noise(1, 9, 3)
    other = x.clone()
    other[:, 4] += 1
    same = (net(other) == net(x)).all(-1)[0]
    assert same.tolist() == [True] * 4 + [False] * 5


def test_weights_begin_as_in_torch():
    torch.manual_seed(0)
    net = Elman(10, 100)
    for weights in net.parameters():
        assert weights.abs().max() <= 0.1
        assert abs(weights.std() - 0.1 / 3**0.5) < 0.01


@pytest.mark.verifies("eq-recurrent-jacobian")
def test_lag_norms_are_those_of_automatic_differentiation():
    net, x, h = Elman(3, 5).double(), noise(7, 3), noise(5, seed=1)
    norms = lag_norms(net.step, x, h)
    assert norms.shape == (8,)
    states = [h, *net(x[None], h[None])[0].detach()]
    for lag in range(8):
        start = states[7 - lag]

        def last(start, lag=lag):
            if lag == 0:
                return start
            return net(x[None, 7 - lag :], start[None])[0, -1]

        jacobian = torch.autograd.functional.jacobian(last, start)
        assert_close(norms[lag], spectral(jacobian))


@pytest.mark.verifies("thm-recurrent-gradient")
@settings(max_examples=25)
@given(st.floats(0.01, 4), st.integers(1, 12), st.integers(0, 2**32))
def test_the_bound_for_two_activations(gain, d, seed):
    w_h = gain * noise(d, d, seed=seed)
    x, h = noise(8, d, seed=seed + 1), noise(d, seed=seed + 2)
    for act, slope in ((torch.tanh, 1.0), (torch.sigmoid, 0.25)):
        norms = lag_norms(lambda x, h, act=act: act(w_h @ h + x), x, h)
        bound = (slope * spectral(w_h)) ** torch.arange(9)
        assert (norms <= bound * (1 + 1e-9)).all()


def test_a_linear_network_of_norm_one_reaches_its_bound():
    turn = torch.linalg.qr(noise(6, 6)).Q
    norms = lag_norms(lambda x, h: turn @ h + x, noise(30, 6), noise(6))
    assert_close(norms, torch.ones(31, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_decays_exponentially(seed):
    torch.manual_seed(seed)
    net, lags = Elman(8, 32).double(), torch.arange(1, 61).double()
    logs = lag_norms(net.step, noise(60, 8), torch.zeros(32).double())
    logs = logs[1:].log()
    together = torch.corrcoef(torch.stack([lags, logs]))[0, 1]
    assert together < 0
    assert together**2 > 0.95


def test_gates_that_keep_lose_little():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(8, 32), noise(30, 8).float()
    with torch.no_grad():
        cell.bias_ih[32:64] += 5
    kept = lag_norms(cell, x, torch.zeros(32))[-1]
    plain = lag_norms(Elman(8, 32).step, x, torch.zeros(32))[-1]
    assert kept > 0.3
    assert plain < 1e-3


# Soft lookup


@given(st.integers(1, 9), st.floats(0.05, 20), st.integers(0, 2**32))
def test_weights_are_a_distribution_that_no_shift_changes(m, tau, seed):
    scores = 3 * noise(4, m, seed=seed)
    weights = lookup_weights(scores, tau)
    assert (weights >= 0).all()
    assert_close(weights.sum(-1), torch.ones(4).double())
    assert_close(lookup_weights(scores + 7, tau), weights)
    assert_close(lookup_weights(scores / tau), weights)
    ratio = ((scores[:, :1] - scores) / tau).exp()
    assert_close(weights * ratio, weights[:, :1].expand_as(weights))


def test_a_lookup_does_not_depend_on_the_order_of_the_entries():
    scores, values = noise(3, 4, 6), noise(3, 6, 5)
    order = torch.randperm(6, generator=seeded())
    found = soft_lookup(scores, values, 0.7)
    assert_close(
        soft_lookup(scores[..., order], values[:, order], 0.7), found
    )
    by_hand = torch.einsum("bnm,bmv->bnv", (scores / 0.7).softmax(-1), values)
    assert_close(found, by_hand)


@pytest.mark.verifies("prop-hard-lookup")
def test_the_error_of_a_cold_lookup():
    scores, values = noise(200, 1, 5), noise(200, 5, 3, seed=1)
    best = scores.sort(-1, descending=True)
    gap = best.values[:, 0, 0] - best.values[:, 0, 1]
    first = values[torch.arange(200), best.indices[:, 0, 0]]
    far = (values - first[:, None]).norm(dim=-1).amax(1)
    for tau in (0.01, 0.1, 0.5, 2.0):
        off = (soft_lookup(scores, values, tau)[:, 0] - first).norm(dim=-1)
        assert (off <= 4 * (-gap / tau).exp() * far + 1e-12).all()
        lost = 1 - lookup_weights(scores, tau).amax((-1, -2))
        assert (lost <= 4 * (-gap / tau).exp() + 1e-12).all()
        assert (lost >= (-gap / tau).exp() / 5 - 1e-12).all()  # not by much


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan])
def test_a_temperature_is_positive(temperature, plain_errors):
    with pytest.raises(ValueError, match=f"positive, got {temperature}"):
        soft_lookup(noise(1, 1, 3), noise(1, 3, 2), temperature)


# Scores


def test_the_additive_score_pair_by_pair():
    score, q, k = AdditiveScore(4).double(), noise(2, 3, 4), noise(2, 5, 4)
    found = score(q, k)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (2, 3, 5))):
        inside = score.w_q.weight @ q[b, i] + score.w_k.weight @ k[b, j]
        assert_close(found[b, i, j], score.u.weight[0] @ inside.tanh())


@pytest.mark.parametrize("kind", ["dot", "general", "concat"])
def test_luongs_scores_pair_by_pair(kind):
    score, q, k = (
        LuongScore(4, kind).double(),
        noise(2, 3, 4),
        noise(2, 5, 4),
    )
    found = score(q, k)
    assert found.shape == (2, 3, 5)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (2, 3, 5))):
        both = torch.cat([q[b, i], k[b, j]])
        if kind == "concat":
            expected = score.u.weight[0] @ (score.w.weight @ both).tanh()
        else:
            w = torch.eye(4) if kind == "dot" else score.w.weight
            expected = q[b, i] @ w.double() @ k[b, j]
        assert_close(found[b, i, j], expected)


def test_another_score_is_refused():
    with pytest.raises(ValueError, match=r"one of .*, got 'cosine'"):
        LuongScore(4, "cosine")


# Tasks


@pytest.mark.parametrize("task", [copy_task, reverse_task])
def test_tasks_are_random_symbols_and_what_to_write(task):
    source, target = task(400, 7, 6, seeded())
    assert source.shape == target.shape == (400, 7)
    assert source.dtype == target.dtype == torch.int64
    assert source.unique().tolist() == [2, 3, 4, 5]
    order = slice(None) if task is copy_task else torch.arange(6, -1, -1)
    assert torch.equal(target, source[:, order])
    assert torch.equal(task(400, 7, 6, seeded())[0], source)
    assert not torch.equal(task(400, 7, 6, seeded(1))[0], source)
    target[0, 0] = PAD
    assert (source != PAD).all()
    counts = source.flatten().bincount()[SYMBOLS:].double() / 2800
    assert ((counts - 0.25).abs() < 5 * (0.25 * 0.75 / 2800) ** 0.5).all()


def test_the_special_tokens_differ_and_are_no_symbols():
    assert PAD != START
    assert max(PAD, START) < SYMBOLS


@pytest.mark.parametrize("task", [copy_task, reverse_task])
@pytest.mark.parametrize("vocab", [-1, 0, 2])
def test_a_task_has_symbols(task, vocab):
    with pytest.raises(ValueError, match=f"more than 2, got {vocab}"):
        task(3, 4, vocab)


# Sequence to sequence


def test_a_target_is_read_one_place_late():
    target = torch.tensor([[5, 6, 7], [3, 4, PAD]])
    assert shifted(target).tolist() == [[START, 5, 6], [START, 3, 4]]
    assert shifted(target[:, :1], 7).tolist() == [[7], [7]]


@pytest.mark.parametrize("kind", ALL)
def test_padding_changes_nothing(kind):
    model = translator(kind)
    source, target = reverse_task(6, 4, 9, seeded())
    padded = F.pad(source, (0, 3), value=PAD)
    assert_close(model(padded, target), model(source, target))
    assert torch.equal(model.generate(padded, 5), model.generate(source, 5))
    mixed = torch.cat([padded, reverse_task(2, 7, 9, seeded(1))[0]])
    assert torch.equal(
        model.generate(mixed, 5)[:6], model.generate(source, 5)
    )


@pytest.mark.parametrize("kind", ALL)
def test_logits_see_the_tokens_before_and_all_of_the_source(kind):
    model = translator(kind)
    source, target = reverse_task(1, 6, 9, seeded())
    logits, other = model(source, target), target.clone()
    other[0, 3] = SYMBOLS + (other[0, 3] - SYMBOLS + 1) % 7
    same = (model(source, other) == logits).all(-1)[0]
    assert same.tolist() == [True] * 4 + [False] * 2
    for place in range(6):
        other = source.clone()
        other[0, place] = SYMBOLS + (other[0, place] - SYMBOLS + 1) % 7
        assert (model(other, target) != logits).any(-1).all()


@pytest.mark.parametrize("kind", ALL)
def test_what_is_written_is_most_probable_after_what_was_written(kind):
    model = translator(kind)
    source, _ = reverse_task(8, 5, 9, seeded())
    written = model.generate(source, 6)
    assert written.shape == (8, 6)
    assert torch.equal(model(source, written).argmax(-1), written)
    assert torch.equal(model.generate(source, 3), written[:, :3])


def test_without_a_score_the_link_is_one_vector():
    model = translator("none")
    source, target = reverse_task(3, 5, 9, seeded())
    keys, state = model.encode(source)
    assert_close(state[0], keys[:, -1])
    logits = model.decode(shifted(target), state, 0 * keys, source)[0]
    assert_close(logits, model(source, target))


@pytest.mark.parametrize("kind", SCORES)
def test_the_alignment_is_where_the_decoder_looks(kind):
    model = translator(kind)
    source, target = reverse_task(3, 5, 9, seeded())
    source = F.pad(source, (0, 2), value=PAD)
    weights = model.alignment(source, target)
    assert weights.shape == (3, 5, 7)
    assert (weights[..., 5:] == 0).all()
    assert (weights[..., :5] > 0).all()
    assert_close(weights.sum(-1), torch.ones(3, 5).double())
    keys, state = model.encode(source)
    queries, _ = model.decoder(model.embed(shifted(target)), state)
    both = torch.cat([weights @ keys, queries], -1)
    expected = model.output((both @ model.mix.weight.T).tanh())
    assert_close(model(source, target), expected)


def test_the_loss_is_the_mean_over_the_symbols_of_each_target():
    model = translator("general")
    source, target = reverse_task(3, 4, 9, seeded())
    target[1, 2:] = PAD
    losses = sequence_losses(model, (source, target))
    assert losses.shape == (3,)
    logs = model(source, target).log_softmax(-1)
    for row, n in enumerate((4, 2, 4)):
        picked = [-logs[row, i, target[row, i]] for i in range(n)]
        assert_close(losses[row], torch.stack(picked).mean())


@pytest.mark.parametrize("kind", ALL)
def test_the_loss_reaches_every_weight(kind):
    model = translator(kind)
    batch = reverse_task(6, 4, 9, seeded())
    sequence_losses(model, batch).sum().backward()
    for name, weights in model.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.any(), name


@pytest.mark.verifies("eq-short-path")
def test_the_way_back_is_as_short_for_every_place():
    values, weights = noise(1, 6, 4), lookup_weights(noise(1, 3, 6))
    jacobian = torch.autograd.functional.jacobian(
        lambda values: soft_lookup(weights.log(), values), values
    )[0, :, :, 0]
    for i in range(3):
        for j in range(6):
            expected = weights[0, i, j] * torch.eye(4).double()
            assert_close(jacobian[i, :, j], expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_gradient_reaches_far_only_with_attention(seed):
    pull = {}
    for score in (None, LuongScore):
        torch.manual_seed(seed)
        model = Seq2Seq(18, 32, score and score(32))
        source = torch.arange(SYMBOLS, 14)[None]
        logits = model(source, source.flip(1))
        F.cross_entropy(logits[:, -1], source[:, 0]).backward()
        # Only the encoder read this symbol, at its first place.
        pull[score] = model.embed.weight.grad[SYMBOLS].norm()
    assert pull[LuongScore] > 100 * pull[None] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ALL)
def test_on_a_gpu_the_logits_are_the_same(kind):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model = translator(kind)
    source, target = reverse_task(4, 5, 9, seeded())
    source = F.pad(source, (0, 2), value=PAD)
    expected, written = model(source, target), model.generate(source, 5)
    model, source, target = model.cuda(), source.cuda(), target.cuda()
    assert_close(model(source, target).cpu(), expected)
    assert torch.equal(model.generate(source, 5).cpu(), written)
