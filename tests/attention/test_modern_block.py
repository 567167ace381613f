"""The modern block: laws of its parts, gradients, half precision, and what is refused."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from tangled.attention.modern_block import (
    LLAMA,
    MODELS,
    LanguageModel,
    ModernConfig,
    ParallelBlock,
    RMSNorm,
    SwiGLU,
    costs,
    grouped,
    initialise,
    language_losses,
    next_token_losses,
)
from tangled.attention.transformer import Stack, part
from tangled.foundations.training import Training, train
from tangled.workshop.statistics import standard_score

SMALL = ModernConfig(
    vocab=13, d_model=12, n_layers=2, n_heads=6, d_ff=10, max_length=32
)
GPT = {
    "positions": "learned",
    "norm": "layer",
    "feed_forward": "gelu_tanh",
    "attention_bias": True,
    "feed_forward_bias": True,
}
VARIANTS = {
    "modern": {},
    "gpt": GPT,
    "post-norm": {**GPT, "norm_first": False},
    "grouped": {"n_kv_heads": 2},
    "one key head": {"n_kv_heads": 1},
    "wide heads": {"d_head": 4, "n_kv_heads": 3},
    "query-key norm": {"qk_norm": True},
    "window": {"window": 3},
    "neighbours": {"rotary_pairs": "neighbours", "d_head": 4},
    "part of a head": {"d_head": 8, "rotary_width": 4},
    "parallel": {"block": "parallel"},
    "parallel, post names": {**GPT, "block": "parallel", "head_bias": True},
    "untied": {"tied": False},
    "no positions": {"positions": "none"},
}


def built(variant, **more):
    torch.manual_seed(0)
    model = LanguageModel(replace(SMALL, **VARIANTS[variant], **more))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.double().eval()


def texts(batch=2, length=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(13, (batch, length), generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_changed_token_changes_nothing_before_it(variant):
    model, tokens = built(variant), texts()
    base = model(tokens)
    for j in range(9):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % 13
        moved = (model(other) != base).any(-1)
        assert not moved[:, :j].any()
        assert moved[:, j].all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_on_the_right_changes_nothing_that_is_read(variant):
    model, tokens = built(variant), texts()
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    found = model(tokens, mask)
    assert_close(found[:1], model(tokens[:1]))
    assert_close(found[1:, :5], model(tokens[1:, :5]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_on_the_left_with_places_changes_nothing(variant):
    model, tokens = built(variant), texts()
    mask = torch.arange(9) >= torch.tensor([[0], [4]])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(tokens, mask, places=places)
    assert_close(found[1:, 4:], model(tokens[1:, 4:]))
    assert found.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_parameters_get_a_finite_gradient(variant):
    model, tokens = built(variant), texts()
    mask = torch.arange(9) >= torch.tensor([[0], [4]])
    losses = next_token_losses(model(tokens, mask), tokens, mask)
    losses.sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_near_float64(variant):
    model, tokens = built(variant), texts()
    exact = model(tokens)
    found = model.to(torch.bfloat16)(tokens)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_window_reaches_through_the_layers_of_a_whole_model():
    model = built("window", n_layers=3)
    tokens = texts(1, 20)
    base = model(tokens)
    other = tokens.clone()
    other[0, 5] = (other[0, 5] + 1) % 13
    moved = (model(other) != base).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(5, 5 + 7))


@pytest.mark.verifies("eq-language-loss")
def test_the_loss_is_that_of_torch_in_any_precision():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 7, 13, generator=generator)
    tokens = texts(2, 7)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        low = logits.to(dtype)
        found = next_token_losses(low, tokens)
        wide = low if dtype == torch.float64 else low.float()
        expected = F.cross_entropy(
            wide[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        assert found.dtype == wide.dtype
        assert_close(found.mean(), expected)


def test_the_loss_of_a_padded_text_counts_only_pairs_of_real_tokens():
    logits, tokens = torch.randn(1, 5, 13), texts(1, 5)
    full = next_token_losses(logits, tokens)
    mask = torch.tensor([[False, True, True, True, False]])
    found = next_token_losses(logits, tokens, mask)
    assert_close(found, full * torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    logits[0, 0] = math.nan  # what a place of padding says is no matter
    logits[0, 4] = -math.inf
    again = next_token_losses(logits, tokens, mask)
    assert torch.equal(again, found)


@pytest.mark.verifies("eq-rms-norm")
@pytest.mark.parametrize("width", [1, 5, 64])
def test_the_norm_is_that_of_torch_with_equal_gradients(width):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = RMSNorm(width, 1e-3), nn.RMSNorm(width, 1e-3)
    gain = torch.randn(width, generator=generator)
    ours.load_state_dict({"gain": gain})
    theirs.load_state_dict({"weight": gain})
    x = torch.randn(4, 3, width, generator=generator, requires_grad=True)
    w = torch.randn(4, 3, width, generator=generator)
    assert_close(ours(x), theirs(x))
    mine = torch.autograd.grad((w * ours(x)).sum(), [x, ours.gain])
    other = torch.autograd.grad((w * theirs(x)).sum(), [x, theirs.weight])
    assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_a_row_of_zeros_stays_zero():
    assert torch.equal(RMSNorm(4)(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_normed_in_float32(dtype):
    x = torch.tensor([[300.0, -400.0, 2.0, 1e-3]]).to(dtype)
    found = RMSNorm(4).to(dtype)(x)
    assert found.dtype == dtype
    exact = F.rms_norm(x.double(), (4,), eps=1e-6)
    assert_close(found.double(), exact, atol=2e-2, rtol=1e-2)


def test_swiglu_is_the_formula_with_biases():
    torch.manual_seed(0)
    net = SwiGLU(replace(SMALL, feed_forward_bias=True)).double()
    x = torch.randn(3, 12, dtype=torch.float64)
    gate = x @ net.gate.weight.T + net.gate.bias
    up = x @ net.up.weight.T + net.up.bias
    hidden = gate * torch.sigmoid(gate) * up
    assert_close(net(x), hidden @ net.down.weight.T + net.down.bias)
    assert net(x[0]).shape == (12,)


@pytest.mark.verifies("eq-residual-scale")
def test_matrices_have_the_deviations_that_are_said():
    config = replace(SMALL, d_model=96, n_layers=3, d_ff=160, vocab=200)
    config = replace(config, **GPT, tied=False, head_bias=True)
    for std in (None, 0.02):
        torch.manual_seed(0)
        model = LanguageModel(replace(config, initial_std=std))
        for name, p in model.named_parameters():
            if p.ndim == 1:
                expected = float("norm" in name and name.endswith("weight"))
                assert (p == expected).all(), name
                continue
            size = p.shape[1] ** -0.5 if std is None else std
            if name.endswith(("w_o.weight", "down.weight")):
                size /= math.sqrt(6)
            unit = p.double().flatten() / size
            assert abs(standard_score(unit, 0.0, 1.0)) < 5, name
            assert abs(standard_score(unit**2, 1.0, 2**0.5)) < 5, name


@pytest.mark.verifies("prop-residual-growth")
def test_networks_alone_write_exactly_what_the_formula_says():
    """E h^2 of relu networks is 1/2 for unit rows: each branch adds 1/2 of its square."""
    generator, d, depth = torch.Generator().manual_seed(0), 64, 6
    sizes = []
    for _ in range(200):
        x = torch.randn(1, d, generator=generator)
        start = x.square().mean()
        for _ in range(depth):
            up = torch.randn(4 * d, d, generator=generator) / d**0.5
            down = torch.randn(d, 4 * d, generator=generator) / (4 * d) ** 0.5
            hidden = F.relu(RMSNorm(d, 0.0)(x) @ up.T)
            x = x + hidden @ down.T
        sizes.append((x.square().mean() - start).detach())
    score = standard_score(torch.stack(sizes).double(), depth / 2)
    assert abs(score) < 5


def test_a_generator_decides_the_first_weights():
    stacks = [Stack(SMALL, causal=True) for _ in range(3)]
    for stack, seed in zip(stacks, (1, 1, 2), strict=True):
        initialise(stack, 2, generator=torch.Generator().manual_seed(seed))
    first, again, other = (
        torch.cat([p.flatten() for p in s.parameters()]) for s in stacks
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.verifies("prop-score-bound")
def test_scores_stay_bounded_with_gains_and_turns():
    torch.manual_seed(0)
    layer = grouped(replace(SMALL, d_head=4, qk_norm=True, n_kv_heads=2))
    layer = layer.double()
    with torch.no_grad():
        layer.q_norm.gain.copy_(torch.tensor([2.0, -3.0, 1.0, 0.5]))
        layer.k_norm.gain.copy_(torch.tensor([0.1, 0.2, -0.7, 0.3]))
        layer.w_q.weight.mul_(1e3)
    rotary = part("positions", replace(SMALL, d_head=4))
    turn = rotary.rotation(torch.arange(50), torch.float64)
    x = torch.randn(3, 50, 12, dtype=torch.float64)
    q = turn(
        layer.q_norm(layer.w_q(x).unflatten(-1, (6, 4)).mT.mT.transpose(1, 2))
    )
    k, _ = layer.keys_values(x, turn)
    scores = q @ k.repeat_interleave(3, 1).mT / 2
    assert scores.abs().max() <= 2 * 3.0 * 0.7 + 1e-9


@torch.no_grad()
@pytest.mark.verifies("prop-score-bound")
def test_queries_and_keys_have_the_epsilon_of_the_configuration():
    torch.manual_seed(0)
    layer = grouped(replace(SMALL, qk_norm=True, norm_eps=0.5)).double()
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    plain = layer.w_q(x).unflatten(-1, (6, 2)).transpose(1, 2)
    square = plain.square().mean(-1, keepdim=True)
    assert_close(layer.queries(x), plain / (square + 0.5).sqrt())
    one = grouped(replace(SMALL, qk_norm=True, norm_eps=0.5, n_heads=1))
    assert_close(one.q_norm(torch.ones(12)), torch.ones(12) / 1.5**0.5)
    assert_close(one.k_norm(torch.ones(12)), torch.ones(12) / 1.5**0.5)


@torch.no_grad()
def test_norms_have_the_epsilon_of_the_configuration():
    model = LanguageModel(replace(SMALL, norm_eps=3.0))
    norms = [m for m in model.modules() if isinstance(m, RMSNorm)]
    assert len(norms) == 5
    for norm in norms:
        assert_close(norm(torch.ones(12)), torch.full((12,), 0.5))


@torch.no_grad()
@pytest.mark.parametrize("branch", ["attention", "feed_forward"])
def test_each_branch_of_a_parallel_block_is_dropped_on_its_own(branch):
    """An entry is missing or twice as large, and so on average it is right."""
    torch.manual_seed(0)
    block = ParallelBlock(replace(SMALL, dropout=0.5)).double()
    other = {"attention": block.feed_forward.down, "feed_forward": None}
    (other[branch] or block.attention.w_o).weight.zero_()
    x = torch.randn(40, 9, 12, dtype=torch.float64)
    ratio = (block.train()(x) - x) / (block.eval()(x) - x)
    assert ((ratio.abs() < 1e-9) | ((ratio - 2).abs() < 1e-6)).all()
    assert abs(standard_score(ratio.flatten(), 1.0, 1.0)) < 5


@torch.no_grad()
def test_weights_of_attention_are_dropped_in_training_alone():
    torch.manual_seed(0)
    layer = grouped(replace(SMALL, attention_dropout=0.5)).double()
    x = torch.randn(1, 1, 12, dtype=torch.float64)  # one weight a head: 1
    heads = [
        layer.train().heads(x) / layer.eval().heads(x) for _ in range(60)
    ]
    found = torch.stack(heads)[..., 0].flatten()
    assert ((found.abs() < 1e-9) | ((found - 2).abs() < 1e-9)).all()
    assert abs(standard_score(found, 1.0, 1.0)) < 5
    still = [layer.eval()(x) for _ in range(2)]
    assert torch.equal(*still)


@torch.no_grad()
@pytest.mark.verifies("prop-rope-pairings")
def test_pairings_are_exchanged_with_all_that_a_head_has():
    config = replace(
        SMALL, d_head=8, n_kv_heads=2, qk_norm=True, attention_bias=True
    )
    halves = LanguageModel(config).double()
    for p in halves.parameters():
        nn.init.normal_(p)
    other = LanguageModel(replace(config, rotary_pairs="neighbours")).double()
    other.load_state_dict(halves.state_dict())
    head = torch.arange(8).reshape(2, 4).T.flatten()
    exact = halves(texts())
    for names in (("w_q", "w_k"), ("q_norm", "k_norm")):
        assert (other(texts()) - exact).abs().max() > 0.1
        for block in other.stack.blocks:
            for name in names:
                for p in getattr(block.attention, name).parameters():
                    p.copy_(p.unflatten(0, (-1, 8))[:, head].flatten(0, 1))
    assert_close(other(texts()), exact)


def test_equal_heads_of_keys_are_one_head():
    torch.manual_seed(0)
    few = grouped(replace(SMALL, n_kv_heads=2))
    many = grouped(SMALL)
    state = few.state_dict()
    for name in ("w_k.weight", "w_v.weight"):
        heads = state[name].unflatten(0, (2, 2))
        state[name] = heads.repeat_interleave(3, 0).flatten(0, 1)
    many.load_state_dict(state)
    x = torch.randn(2, 5, 12)
    assert_close(few(x, causal=True), many(x, causal=True))


@pytest.mark.verifies("eq-parallel")
def test_a_parallel_stack_has_half_of_the_norms():
    model = built("parallel")
    norms = [m for m in model.modules() if isinstance(m, RMSNorm)]
    assert len(norms) == SMALL.n_layers + 1


@pytest.mark.verifies("eq-parallel")
def test_both_branches_of_a_parallel_block_read_the_normed_rows():
    torch.manual_seed(0)
    block, x = ParallelBlock(SMALL).double(), 5 * torch.randn(2, 4, 12)
    x = x.double()
    y = x / x.square().mean(-1, keepdim=True).add(SMALL.norm_eps).sqrt()
    exact = x + block.attention(y, causal=True) + block.feed_forward(y)
    assert_close(block(x, causal=True), exact)


def test_a_parallel_block_needs_pre_norm():
    with pytest.raises(ValueError, match="needs norm_first=True"):
        ParallelBlock(replace(SMALL, norm_first=False))


@pytest.mark.verifies("eq-tied-gradient")
def test_a_tied_table_is_saved_once_and_stays_tied():
    model = LanguageModel(SMALL)
    names = [n for n, _ in model.named_parameters()]
    assert "embed.tokens.weight" in names
    assert "head.weight" not in names
    model.to(torch.bfloat16)
    with torch.no_grad():
        model.embed.tokens.weight.zero_()
    assert (model.head.weight == 0).all()


def test_the_first_loss_is_near_the_entropy_of_a_guess():
    torch.manual_seed(0)
    config = replace(SMALL, vocab=500, d_model=96, tied=False)
    tokens = torch.randint(500, (20, 32))
    loss = next_token_losses(LanguageModel(config)(tokens), tokens).mean()
    assert abs(loss - math.log(500) - 0.5) < 0.1


@pytest.mark.parametrize("variant", ["modern", "gpt", "parallel"])
def test_a_model_learns_a_text_by_heart(variant):
    torch.manual_seed(0)
    model = LanguageModel(replace(SMALL, **VARIANTS[variant]))
    text = texts(4, 9)
    run = train(
        model,
        language_losses,
        text,
        torch.optim.AdamW(model.parameters(), lr=2e-2),
        Training(80, batch_size=4),
    )
    assert run.log[-1]["loss"] < 0.3 * run.log[0]["loss"]


def test_costs_are_counted_by_hand():
    config = replace(SMALL, n_kv_heads=2, tied=False)
    d, h, kv, d_k, d_ff, vocab = 12, 6, 2, 2, 10, 13
    matrices = 2 * d * (h + kv) * d_k + 3 * d * d_ff
    found = costs(config, 100)
    assert found.parameters == 2 * (matrices + 2 * d) + d + 2 * vocab * d
    assert (
        found.flops == 2 * (2 * matrices + vocab * d) + 2 * 4 * h * d_k * 100
    )
    assert found.cache == 2 * 2 * kv * d_k * 100
    near = costs(replace(config, window=7), 100)
    assert near.cache == 2 * 2 * kv * d_k * 7
    assert found.flops - near.flops == 2 * 4 * h * d_k * 93


def test_arithmetic_is_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(SMALL, n_kv_heads=2)
    with torch.device("meta"):
        model = LanguageModel(config)
    tokens = torch.zeros(1, 1, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    assert costs(config, 1).flops == counter.get_total_flops()


def test_models_differ_where_the_chapter_says():
    changed = {
        field
        for field in vars(LLAMA)
        if getattr(LLAMA, field) != getattr(MODELS["Mistral 7B"], field)
    }
    assert changed == {"vocab", "max_length", "rotary_base", "window"}


def test_a_model_on_meta_can_be_filled_later():
    with torch.device("meta"):
        empty = LanguageModel(SMALL)
    model = built("modern").float()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(texts()), model(texts()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"norm": "batch"}, "batch"),
        ({"feed_forward": "swish"}, "swish"),
        ({"positions": "alibi"}, "alibi"),
        ({"block": "twin"}, "twin"),
        ({"rotary_pairs": "thirds"}, "thirds"),
        ({"rotary_width": 1}, "even width"),
        ({"d_model": 9, "n_heads": 3}, "even width, got 3"),
        ({"n_kv_heads": 4}, "4"),
        ({"window": 0}, "window must be a whole number"),
        ({"d_head": 0}, "d_head must be a whole number"),
        ({"n_kv_heads": 0}, "n_kv_heads must be a whole number"),
        ({"n_kv_heads": 2.0}, "n_kv_heads must be a whole number"),
        ({"rotary_width": 0}, "rotary_width must be a whole number"),
        ({"rotary_width": 4}, "width of a head, 2, got 4"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_configurations_are_refused(change, told, plain_errors):
    with pytest.raises(ValueError, match=told):
        LanguageModel(replace(SMALL, **change))(texts())


@pytest.mark.parametrize("token", [-1, 13])
def test_a_token_outside_of_the_vocabulary_is_told(token):
    tokens = texts()
    tokens[1, 3] = token
    with pytest.raises(IndexError, match=r"tokens must lie in 0\.\.12"):
        LanguageModel(SMALL)(tokens)


def test_all_pairs_of_choices_build_and_read():
    choices = [v for v in VARIANTS.values() if "norm_first" not in v]
    for one, other in itertools.combinations(choices, 2):
        config = replace(SMALL, **{**one, **other})
        assert LanguageModel(config)(texts()).isfinite().all()


@torch.no_grad()
def test_the_last_logits_are_those_of_all():
    torch.manual_seed(0)
    model = LanguageModel(ModernConfig(31, 24, 2, 6, 40)).double().eval()
    tokens = torch.randint(31, (2, 9))
    torch.testing.assert_close(
        model(tokens, last=True), model(tokens)[:, -1:]
    )
