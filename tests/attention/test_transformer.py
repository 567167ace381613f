"""Laws of blocks, stacks and the encoder-decoder, of the loss and rates, and what they refuse."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from tangled.attention import transformer
from tangled.attention.recurrence import shifted
from tangled.attention.transformer import (
    PARTS,
    Block,
    Embedding,
    EncoderDecoder,
    FeedForward,
    Stack,
    TransformerConfig,
    glorot,
    inverse_sqrt,
    keys_mask,
    modules,
    part,
    smoothed_cross_entropy,
)


def small(**changes):
    sizes = {"vocab": 11, "d_model": 8, "n_layers": 2, "n_heads": 2}
    return TransformerConfig(
        **(sizes | {"d_ff": 20, "max_length": 9} | changes)
    )


def noise(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def built(make, *given, seed=0, **named):
    torch.manual_seed(seed)
    return make(*given, **named).double().eval()


# Parts by name.


def test_every_part_of_the_table_is_built_by_its_name():
    for kind, table in PARTS.items():
        for name in table:
            assert isinstance(part(kind, small(**{kind: name})), nn.Module)


def test_the_names_choose_what_they_say():
    x = noise(2, 3, 8)
    for name, act in (
        ("relu", F.relu),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    ):
        network = built(part, "feed_forward", small(feed_forward=name))
        assert_close(network(x), network.down(act(network.up(x))))
    norm = part("norm", small(norm_eps=0.3))
    assert norm.eps == 0.3
    heads = part(
        "attention", small(attention_bias=False, attention_dropout=0.2)
    )
    assert heads.w_q.bias is None
    assert heads.dropout == 0.2
    network = part("feed_forward", small(feed_forward_bias=False))
    assert network.up.bias is None
    assert network.down.bias is None
    assert part(
        "positions", small(positions="learned")
    ).table.weight.shape == (9, 8)
    assert (
        part("positions", small(positions="sinusoidal_halves")).pairs
        == "halves"
    )


def test_unknown_names_are_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"no norm 'batch', but .*layer"):
        part("norm", small(norm="batch"))


def test_a_name_in_two_tables_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "two_tables"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "plain.py").write_text("")
    for name in ("a", "b"):
        rows = ", ".join(
            f"'{key}': lambda c: Flatten()" for key in ("layer", name)
        )
        (folder / f"{name}.py").write_text(
            f"from torch.nn import Flatten\nPARTS = {{'norm': {{{rows}}}}}"
        )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="two modules have a norm 'layer'"):
        part("norm", small(), "two_tables")
    (folder / "b.py").unlink()
    for name in [n for n in sys.modules if n.startswith("two_tables")]:
        del sys.modules[name]
    modules.cache_clear()
    for name in ("layer", "a"):
        assert part("norm", small(norm=name), "two_tables").start_dim == 1


def test_the_modules_of_the_package_are_found_without_an_import():
    names = [m.__name__ for m in modules()]
    assert "tangled.attention.transformer" in names
    assert names == sorted(names)
    assert transformer.PARTS is PARTS


def test_sizes_and_dropouts_out_of_range_are_refused(plain_errors):
    for name in (
        "vocab",
        "d_model",
        "n_layers",
        "n_heads",
        "d_ff",
        "max_length",
    ):
        for size in (0, -1, 2.0, True):
            with pytest.raises(ValueError, match=f"{name} must be a whole"):
                small(**{name: size})
    for name in ("dropout", "attention_dropout"):
        for share in (-0.1, 1.0):
            with pytest.raises(ValueError, match=f"{name} must lie in"):
                small(**{name: share})


# Blocks and stacks.


@pytest.mark.verifies("eq-post-norm", "eq-pre-norm")
@pytest.mark.parametrize("first", [False, True])
def test_the_three_branches_are_wired_in_their_order(first):
    block = built(Block, small(norm_first=first), cross=True)
    for norm in (
        block.attention_norm,
        block.cross_norm,
        block.feed_forward_norm,
    ):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x, memory = noise(2, 4, 8), noise(2, 3, 8, seed=1)
    found = block(x, memory, causal=True)
    for branch, norm in (
        (lambda y: block.attention(y, causal=True), block.attention_norm),
        (lambda y: block.cross(y, memory), block.cross_norm),
        (block.feed_forward, block.feed_forward_norm),
    ):
        x = x + branch(norm(x)) if first else norm(x + branch(x))
    assert_close(found, x, rtol=0, atol=1e-12)


def test_a_memory_belongs_to_cross_attention():
    x = noise(1, 2, 8)
    with pytest.raises(ValueError, match="cross=True"):
        built(Block, small())(x, x)
    with pytest.raises(ValueError, match="cross=True"):
        built(Block, small(), cross=True)(x)


def test_only_pre_norm_ends_with_a_norm():
    x = noise(2, 4, 8)
    for first in (False, True):
        stack = built(Stack, small(norm_first=first))
        y = x
        for block in stack.blocks:
            y = block(y)
        assert isinstance(stack.norm, nn.LayerNorm) == first
        assert_close(stack(x), stack.norm(y))


def test_a_causal_stack_is_causal_bit_for_bit():
    x = noise(2, 6, 8)
    other = x.clone()
    other[:, 3:] += 1
    for first in (False, True):
        stack = built(Stack, small(norm_first=first), causal=True)
        assert torch.equal(stack(x)[:, :3], stack(other)[:, :3])
        assert not torch.equal(stack(x)[:, 3:], stack(other)[:, 3:])


def test_an_encoder_without_places_only_permutes():
    """With places it does not: order is what positions add."""
    torch.manual_seed(0)
    tokens, order = torch.randint(0, 11, (2, 7)), torch.randperm(7)
    for kind, same in (
        ("none", True),
        ("sinusoidal", False),
        ("learned", False),
    ):
        model = built(EncoderDecoder, small(positions=kind))
        gap = model.encode(tokens)[:, order] - model.encode(tokens[:, order])
        assert (gap.abs().max() < 1e-12) == same


def test_rotations_and_caches_reach_the_attention():
    stack, x = built(Stack, small(), True), noise(1, 3, 8)
    memory = noise(1, 4, 8, seed=1)
    turned, asked = [], []

    def rotate(y):
        turned.append(y.shape)
        return 2 * y

    class Asked:
        def __init__(self, name):
            self.name = name

        def keys_values(self, layer, read, rotate):
            asked.append((self.name, read.shape[1]))
            return layer.keys_values(read, rotate)

    plain = stack(x, memory)
    caches = [(Asked(f"own {i}"), Asked(f"memory {i}")) for i in range(2)]
    assert torch.equal(stack(x, memory, cache=caches), plain)
    assert asked == [
        ("own 0", 3),
        ("memory 0", 4),
        ("own 1", 3),
        ("memory 1", 4),
    ]
    assert not torch.equal(stack(x, memory, rotate=rotate), plain)
    assert turned == 4 * [(1, 2, 3, 4)]  # queries and keys of two layers


def test_dropout_is_on_each_branch_and_on_the_embedding():
    torch.manual_seed(0)
    block = Block(small(dropout=0.999999), cross=True)
    x, memory = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    block.norm_first = True
    assert torch.equal(block.train()(x, memory), x)
    embed = Embedding(small(dropout=0.999999)).train()
    assert not embed(torch.tensor([[1, 2]]), torch.arange(2)).any()


# Embedding and encoder-decoder.


def test_rows_of_tokens_begin_with_unit_variance():
    for scaled in (True, False):
        torch.manual_seed(0)
        config = TransformerConfig(
            2000, 64, n_heads=2, positions="none", scale_embedding=scaled
        )
        embed = Embedding(config).eval()
        rows = embed(torch.arange(2000)[None], torch.arange(2000))
        deviation = (2 / rows.numel()) ** 0.5
        assert abs(rows.square().mean().item() - 1) < 5 * deviation
        scale = 8.0 if scaled else 1.0
        assert torch.equal(rows[0], embed.tokens.weight * scale)


def test_tokens_outside_of_the_vocabulary_are_refused():
    model = built(EncoderDecoder, small())
    for token in (11, -1):
        with pytest.raises(IndexError, match=r"tokens must lie in 0..10"):
            model.encode(torch.tensor([[1, token]]))


@pytest.mark.verifies("def-masks")
@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned"])
def test_a_later_token_changes_nothing_before_it(positions):
    for first in (False, True):
        model = built(
            EncoderDecoder, small(norm_first=first, positions=positions)
        )
        source, tokens = (
            torch.tensor([[3, 4, 5]]),
            torch.tensor([[1, 6, 7, 8]]),
        )
        whole = model(source, tokens)
        other = tokens.clone()
        other[0, 2] = 9
        moved = model(source, other)
        assert torch.equal(moved[:, :2], whole[:, :2])
        assert (moved[:, 2:] - whole[:, 2:]).abs().amax(-1).min() > 1e-6


def test_padding_changes_nothing():
    for first in (False, True):
        model = built(EncoderDecoder, small(norm_first=first))
        source = torch.tensor([[3, 4, 5]])
        tokens = torch.tensor([[1, 6, 7, 8]])
        long = F.pad(source, (0, 3), value=9)
        alone = model(source, tokens)
        padded = model(long, tokens, torch.arange(6)[None] < 3)
        assert_close(padded, alone, rtol=0, atol=1e-12)
        assert (model(long, tokens) - alone).abs().max() > 1e-3


def test_a_mask_of_written_tokens_hides_them():
    """Left padding of what is written, with places that count from 0."""
    model = built(EncoderDecoder, small())
    memory = noise(1, 3, 8)
    alone = model.decode(torch.tensor([[1, 6, 7]]), memory)
    padded = model.decode(
        torch.tensor([[0, 0, 1, 6, 7]]),
        memory,
        mask=torch.tensor([[False, False, True, True, True]]),
        places=torch.tensor([[0, 0, 0, 1, 2]]),
    )
    assert_close(padded[:, 2:], alone, rtol=0, atol=1e-12)


def test_keys_masks_are_broadcast_over_heads_and_queries():
    mask = torch.tensor([[True, False], [True, True]])
    assert keys_mask(mask).shape == (2, 1, 1, 2)
    assert torch.equal(keys_mask(mask)[:, 0, 0], mask)
    assert keys_mask(None) is None


def test_a_tied_head_is_the_table_and_an_untied_one_is_not():
    tied, free = EncoderDecoder(small()), EncoderDecoder(small(tied=False))
    assert tied.head.weight is tied.embed.tokens.weight
    assert free.head.weight is not free.embed.tokens.weight
    count = [sum(p.numel() for p in m.parameters()) for m in (tied, free)]
    assert count[1] - count[0] == 11 * 8


@pytest.mark.verifies("prop-block-cost")
def test_the_base_model_has_the_parameters_of_the_formula():
    d, d_ff, vocab = 512, 2048, 37_000
    attention = 4 * d * d + 4 * d
    network = 2 * d * d_ff + d_ff + d
    encoder = 6 * (attention + network + 2 * 2 * d)
    decoder = 6 * (2 * attention + network + 3 * 2 * d)
    with torch.device("meta"):
        model = EncoderDecoder(TransformerConfig(vocab))
    count = sum(p.numel() for p in model.parameters())
    assert count == encoder + decoder + vocab * (d + 1) == 63_119_496


def test_glorot_weights_have_their_variance_and_biases_are_zero():
    torch.manual_seed(0)
    network = FeedForward(small(d_model=200, n_heads=1, d_ff=600), F.relu)
    glorot(network)
    for layer in (network.up, network.down):
        weights = layer.weight.detach().double()
        expected = 2 / 800
        # The square of a uniform variable has variance 4/5 of its mean squared.
        deviation = expected * math.sqrt(0.8 / weights.numel())
        assert abs(weights.square().mean() - expected) < 5 * deviation
        assert not layer.bias.any()
    glorot(FeedForward(small(feed_forward_bias=False), F.relu))
    model = built(EncoderDecoder, small())
    for stack in (model.encoder, model.decoder):
        assert not any(
            layer.bias.any()
            for layer in stack.modules()
            if isinstance(layer, nn.Linear)
        )


# Loss and rates.


@pytest.mark.verifies("prop-label-smoothing")
def test_the_gradient_is_the_difference_of_distributions():
    logits = noise(3, 5, 7).requires_grad_()
    target = torch.randint(
        7, (3, 5), generator=torch.Generator().manual_seed(0)
    )
    for doubt in (0.0, 0.1, 0.7):
        loss = smoothed_cross_entropy(logits, target, doubt)
        assert loss.shape == target.shape
        [found] = torch.autograd.grad(loss.sum(), logits)
        wanted = (1 - doubt) * F.one_hot(target, 7).double() + doubt / 7
        assert_close(found, logits.softmax(-1) - wanted)


def test_half_logits_are_judged_in_float32():
    logits = noise(4, 9).to(torch.bfloat16)
    target = torch.tensor([0, 3, 3, 8])
    found = smoothed_cross_entropy(logits, target, 0.1)
    assert found.dtype == torch.float32
    exact = smoothed_cross_entropy(logits.double(), target, 0.1)
    assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_smoothing_out_of_range_is_refused():
    for doubt in (-0.1, 1.0):
        with pytest.raises(
            ValueError, match=r"smoothing must lie in \[0, 1\)"
        ):
            smoothed_cross_entropy(
                torch.zeros(1, 2), torch.tensor([0]), doubt
            )


@pytest.mark.verifies("eq-inverse-sqrt")
def test_the_rate_is_that_of_the_paper():
    factor = inverse_sqrt(4000)
    for k in (0, 1, 999, 3998, 3999, 4000, 15_999, 99_999):
        paper = 512**-0.5 * min((k + 1) ** -0.5, (k + 1) * 4000**-1.5)
        assert math.isclose(factor(k) * (512 * 4000) ** -0.5, paper)
    assert factor(3999) == 1
    with pytest.raises(ValueError, match="a step at least, got 0"):
        inverse_sqrt(0)


def test_a_model_learns_to_copy_four_letters():
    torch.manual_seed(0)
    config = TransformerConfig(8, 32, 1, 2, 64, norm_first=True, dropout=0.0)
    model = EncoderDecoder(config)
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        source = torch.randint(2, 8, (64, 4))
        logits = model(source, shifted(source))
        loss = smoothed_cross_entropy(logits, source).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss.item() < 0.1


def test_a_configuration_is_copied_with_its_model():
    model = built(EncoderDecoder, small())
    other = copy.deepcopy(model)
    assert other.config == model.config
    assert other.head.weight is other.embed.tokens.weight
