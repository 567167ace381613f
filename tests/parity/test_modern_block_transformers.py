"""The language model beside GPT-2, GPT-J, Llama, Mistral and Qwen3 of the library transformers.

Equal weights give equal logits, losses and gradients, at odd sizes: six heads on two, heads that
are not d / h wide, a vocabulary that no power of two divides. On the meta device our four published
models have as many parameters as theirs, and tensors of the same shapes.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tangled.attention import pretrained
from tangled.attention.modern_block import (
    MODELS,
    LanguageModel,
    ModernConfig,
    RMSNorm,
    costs,
    next_token_losses,
)
from tangled.attention.positions import LinearScaling, Llama3Scaling
from tangled.workshop.checkpoint import match_keys

transformers = pytest.importorskip("transformers")

BOTH = ("weight", "bias")
GPT2, LLAMA = pretrained.GPT2.tensors, pretrained.LLAMA.tensors


def ours(name: str, kind: str) -> str:
    """Return the name of a parameter of a block."""
    return f"stack.blocks.#.{name}.{kind}"


GPTJ = {
    "transformer.wte.weight": "embed.tokens.weight",
    **{f"lm_head.{kind}": f"head.{kind}" for kind in BOTH},
    **{f"transformer.ln_f.{kind}": f"stack.norm.{kind}" for kind in BOTH},
    **{f"transformer.h.#.ln_1.{kind}": ours("norm", kind) for kind in BOTH},
    **{
        f"transformer.h.#.attn.{w}_proj.weight": ours(
            f"attention.w_{'o' if w == 'out' else w}", "weight"
        )
        for w in ("q", "k", "v", "out")
    },
    **{
        f"transformer.h.#.mlp.fc_{w}.{kind}": ours(
            f"feed_forward.{name}", kind
        )
        for kind in BOTH
        for w, name in (("in", "up"), ("out", "down"))
    },
}
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 60,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 101,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
GPT_SIZES = {
    "n_layer": 3,
    "n_embd": 60,
    "n_head": 6,
    "vocab_size": 99,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def modern(**fields: object) -> ModernConfig:
    """Return the configuration of the sizes above."""
    same = {"norm_eps": 1e-6, "tied": False, "n_kv_heads": 2, "d_ff": 101}
    return ModernConfig(
        **{
            "vocab": 99,
            "d_model": 60,
            "n_layers": 3,
            "n_heads": 6,
            "max_length": 64,
            **same,
            **fields,
        }
    )


def gpt(**fields: object) -> ModernConfig:
    """Return a configuration with GPT-2's parts."""
    return modern(
        **{
            "positions": "learned",
            "norm": "layer",
            "norm_eps": 1e-5,
            "feed_forward": "gelu_tanh",
            "d_ff": 240,
            "n_kv_heads": None,
            "attention_bias": True,
            "feed_forward_bias": True,
            "tied": True,
            **fields,
        }
    )


def llama(**fields: object) -> Callable[[], nn.Module]:
    """Return what builds a Llama of the library."""
    config = transformers.LlamaConfig(**SIZES, **fields)
    return functools.partial(transformers.LlamaForCausalLM, config)


def rope(kind: str, **fields: object) -> dict[str, object]:
    """Return how the library writes a RoPE scaling."""
    told = {"rope_type": kind, "rope_theta": 500.0, **fields}
    return {"rope_parameters": told}


CASES = {
    "GPT-2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**GPT_SIZES)
        ),
        GPT2,
        gpt(),
    ),
    "GPT-J": (
        lambda: transformers.GPTJForCausalLM(
            transformers.GPTJConfig(
                **GPT_SIZES,
                rotary_dim=6,
                n_inner=101,
                tie_word_embeddings=False,
            )
        ),
        GPTJ,
        gpt(
            positions="rotary",
            rotary_pairs="neighbours",
            rotary_width=6,
            attention_bias=False,
            head_bias=True,
            block="parallel",
            tied=False,
            d_ff=101,
        ),
    ),
    "Llama": (llama(), LLAMA, modern()),
    "Llama, tied": (
        llama(tie_word_embeddings=True),
        LLAMA,
        modern(tied=True),
    ),
    "Llama, wide heads, biases": (
        llama(head_dim=16, attention_bias=True),
        LLAMA,
        modern(d_head=16, attention_bias=True),
    ),
    "Llama, another base": (
        llama(**rope("default")),
        LLAMA,
        modern(rotary_base=500.0),
    ),
    "Llama, linear": (
        llama(**rope("linear", factor=4.0)),
        LLAMA,
        modern(rotary_base=500.0, rotary_scaling=LinearScaling(4.0)),
    ),
    "Llama 3.1": (
        llama(
            **rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            )
        ),
        LLAMA,
        modern(
            rotary_base=500.0, rotary_scaling=Llama3Scaling(8.0, 1.0, 4.0, 32)
        ),
    ),
    "Mistral": (
        lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(
                **SIZES, sliding_window=7, attn_implementation="eager"
            )
        ),
        LLAMA,
        modern(window=7),
    ),
    "Qwen3": (
        lambda: transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**SIZES, head_dim=14)
        ),
        LLAMA,
        modern(d_head=14, qk_norm=True),
    ),
}


def spread(model: nn.Module) -> nn.Module:
    """Give a model weights that make logits of order one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_norm = "norm" in name or "ln_" in name
            start = float(is_norm and name.endswith("weight"))
            p.copy_(start + (0.15 if p.ndim > 1 else 0.1) * noise)
    return model.eval()


def tokens() -> Tensor:
    """Return three texts of twenty tokens."""
    return torch.randint(
        99, (3, 20), generator=torch.Generator().manual_seed(2)
    )


def untied(found: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """Leave the second name of a tied table out."""
    return {n: x for n, x in found.items() if not (tied and "lm_head" in n)}


def pair(case: str) -> tuple[nn.Module, LanguageModel, dict[str, object]]:
    """Return their model and ours with its weights, and the key map."""
    build, keys, config = CASES[case]
    theirs, mine = spread(build()), LanguageModel(config).eval()
    used = dict(keys)
    if config.tied:
        used["lm_head.weight"] = ()
    mine.load_state_dict(match_keys(mine, theirs.state_dict(), used))
    return theirs, mine, used


@pytest.mark.parametrize("case", CASES)
def test_logits_are_theirs(case):
    theirs, mine, _ = pair(case)
    read = tokens()
    with torch.no_grad():
        expected = theirs.double()(read).logits
        found = mine.double()(read)
    assert 0.3 < expected.std() < 30
    # The library makes the angles of RoPE in float32.
    bound = 1e-10 if case == "GPT-2" else 1e-5
    assert (found - expected).abs().max() < bound
    assert (found - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_are_theirs(case):
    theirs, mine, _ = pair(case)
    with torch.no_grad():
        expected, found = theirs(tokens()).logits, mine(tokens())
    assert_close(found, expected, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_theirs(case):
    theirs, mine, keys = pair(case)
    read = tokens()
    loss = theirs.double()(read, labels=read).loss
    mean = next_token_losses(mine.double()(read), read).mean()
    assert abs(loss - mean) < 1e-5
    loss.backward()
    mean.backward()
    grads = {n: p.grad for n, p in theirs.named_parameters()}
    tied = mine.config.tied
    grads = match_keys(
        mine,
        untied(grads, tied)
        | ({"lm_head.weight": torch.empty(0)} if tied else {}),
        keys,
    )
    # Some are exactly 0, such as that of a bias of keys that are not turned.
    least = 1e-4 * max(g.norm() for g in grads.values())
    for name, p in mine.named_parameters():
        error = (p.grad - grads[name]).norm()
        assert error < 1e-5 * (grads[name].norm() + least), name


def test_padding_on_the_right_is_left_out_of_the_loss_as_theirs():
    theirs, mine, _ = pair("Llama")
    read, mask = tokens(), torch.ones(3, 20, dtype=torch.bool)
    mask[1, 15:] = mask[2, 4:] = False
    labels = read.masked_fill(~mask, -100)
    expected = theirs.double()(
        read, attention_mask=mask.long(), labels=labels
    ).loss
    losses = next_token_losses(mine.double()(read, mask), read, mask)
    found = losses.sum() / mask[:, 1:].sum()
    assert abs(found - expected) < 1e-6


def test_the_window_of_the_reference_is_as_wide_as_ours():
    theirs, mine, _ = pair("Mistral")
    read = tokens()
    other = read.clone()
    other[:, 0] = (other[:, 0] + 1) % 99
    with torch.no_grad():
        for model in (lambda x: theirs(x).logits, mine):
            moved = (model(read) - model(other)).abs().amax((0, 2)) > 0
            # Three layers, each reaches six places back.
            assert moved.tolist() == [True] * 19 + [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_llamas_also_in_half_precision(dtype):
    theirs = transformers.models.llama.modeling_llama.LlamaRMSNorm(48, 1e-5)
    mine = RMSNorm(48, 1e-5)
    generator = torch.Generator().manual_seed(0)
    gain = 1 + 0.1 * torch.randn(48, generator=generator)
    x = 30 * torch.randn(7, 48, generator=generator)
    for norm, name in ((theirs, "weight"), (mine, "gain")):
        norm.load_state_dict({name: gain})
        norm.to(dtype)
    assert torch.equal(mine(x.to(dtype)), theirs(x.to(dtype)))


REAL = {
    "GPT-2": (
        124_439_808,
        GPT2,
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config()),
    ),
    "Llama 3 8B": (
        8_030_261_248,
        LLAMA,
        lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=128256,
                intermediate_size=14336,
                num_key_value_heads=8,
            )
        ),
    ),
    "Mistral 7B": (
        7_241_732_096,
        LLAMA,
        lambda: transformers.MistralForCausalLM(transformers.MistralConfig()),
    ),
    "Qwen3 0.6B": (
        596_049_920,
        LLAMA,
        lambda: transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                vocab_size=151936,
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
                num_key_value_heads=8,
                tie_word_embeddings=True,
            )
        ),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_are_theirs(name):
    count, keys, build = REAL[name]
    with torch.device("meta"):
        theirs, mine = build(), LanguageModel(MODELS[name])
    assert sum(p.numel() for p in theirs.parameters()) == count
    assert costs(MODELS[name], 1).parameters == count
    used = dict(keys) | ({"lm_head.weight": ()} if mine.config.tied else {})
    shapes = {
        n: x.shape
        for n, x in match_keys(mine, theirs.state_dict(), used).items()
    }
    for n, x in mine.named_parameters():
        assert shapes[n] == x.shape
