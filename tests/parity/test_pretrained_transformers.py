"""Folders of the library transformers: theirs opened by us, ours by them, real sizes on meta."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tangled.attention.pretrained import (
    REQUIRED,
    architecture,
    checkpoint_tensors,
    config_from,
    load_pretrained,
    mean_row,
    save_pretrained,
)
from tangled.workshop.checkpoint import (
    CheckpointError,
    load_checkpoint,
    match_keys,
    model_tensors,
    read_config,
    read_tensors,
    save_checkpoint,
)

transformers = pytest.importorskip("transformers")

# Six heads on two, an odd vocabulary, widths that no power of two divides.
DECODER = {
    "num_hidden_layers": 3,
    "hidden_size": 60,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 101,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MARIAN = {
    "d_model": 60,
    "vocab_size": 100,
    "decoder_vocab_size": 100,
    "max_position_embeddings": 64,
    **{f"{side}_layers": 3 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 6 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 101 for side in ("encoder", "decoder")},
    "pad_token_id": 99,
    "eos_token_id": 0,
    "decoder_start_token_id": 99,
    "forced_eos_token_id": None,
    "scale_embedding": True,
}
BERT = {
    "num_hidden_layers": 3,
    "hidden_size": 60,
    "num_attention_heads": 6,
    "intermediate_size": 101,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
GPT2 = {
    "n_layer": 3,
    "n_embd": 60,
    "n_head": 6,
    "vocab_size": 99,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KINDS = {
    "gpt2": ("GPT2", "GPT2LMHeadModel", GPT2),
    "gpt2 relu": (
        "GPT2",
        "GPT2LMHeadModel",
        {**GPT2, "activation_function": "relu", "n_inner": 77},
    ),
    "llama": ("Llama", "LlamaForCausalLM", DECODER),
    "llama 3": (
        "Llama",
        "LlamaForCausalLM",
        {
            **DECODER,
            "head_dim": 16,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-3,
            "rope_parameters": LLAMA3,
        },
    ),
    "llama linear": (
        "Llama",
        "LlamaForCausalLM",
        {
            **DECODER,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 1e4,
                "factor": 4.0,
            },
        },
    ),
    "mistral": (
        "Mistral",
        "MistralForCausalLM",
        {**DECODER, "sliding_window": 7, "attn_implementation": "eager"},
    ),
    "qwen3": (
        "Qwen3",
        "Qwen3ForCausalLM",
        {**DECODER, "head_dim": 12, "tie_word_embeddings": True},
    ),
    "marian": (
        "Marian",
        "MarianMTModel",
        {**MARIAN, "activation_function": "swish"},
    ),
    "marian unscaled": (
        "Marian",
        "MarianMTModel",
        {**MARIAN, "scale_embedding": False, "activation_function": "relu"},
    ),
    "bert": ("Bert", "BertModel", BERT),
    "masked bert": ("Bert", "BertForMaskedLM", BERT),
}


def library(kind: str, **changes: object) -> nn.Module:
    """A model of the library whose outputs are of order one, in float64."""
    family, name, sizes = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**{**sizes, **changes})
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" in name:
                continue  # they are constants
            noise = torch.randn(p.shape, generator=generator)
            is_norm = "norm" in name.lower() or "ln_" in name
            gain = is_norm and name.endswith("weight")
            small = 0.1 if is_norm or p.ndim == 1 else 0.15
            p.copy_(gain + small * noise)
        if hasattr(model, "final_logits_bias"):
            bias = model.final_logits_bias
            bias.copy_(torch.randn(bias.shape, generator=generator))
    return model.double().eval()


TOKENS = torch.randint(
    99, (3, 20), generator=torch.Generator().manual_seed(2)
)
TARGET = torch.randint(99, (3, 9), generator=torch.Generator().manual_seed(3))
MASK = torch.arange(20) < torch.tensor([20, 15, 8])[:, None]
TYPES = (torch.arange(20) > 9).long().expand(3, 20)


def outputs(model: nn.Module, kind: str) -> Tensor:
    """Outputs of a model, theirs or ours, where they mean something."""
    theirs = isinstance(model, transformers.PreTrainedModel)
    if kind.startswith("marian"):
        if not theirs:
            return model(TOKENS, TARGET, MASK)
        return model(
            input_ids=TOKENS,
            attention_mask=MASK.long(),
            decoder_input_ids=TARGET,
        ).logits
    if "bert" not in kind:
        return model(TOKENS).logits if theirs else model(TOKENS)
    if not theirs:
        rows = model(TOKENS, MASK, TYPES)
        if kind == "bert":
            rows = torch.cat([rows, model.pooled(rows)[:, None]], 1)
    else:
        out = model(TOKENS, attention_mask=MASK.long(), token_type_ids=TYPES)
        if kind == "bert":
            pooled = out.pooler_output[:, None]
            rows = torch.cat([out.last_hidden_state, pooled], 1)
        else:
            rows = out.logits
    seen = torch.cat([MASK, MASK[:, :1]], 1)[:, : rows.shape[1]]
    return rows[seen]


def close(a: Tensor, b: Tensor, kind: str) -> None:
    """Equal, up to positions, which the library rounds to float32."""
    size = b.std()
    assert 0.3 < size < 30
    rounded = not kind.startswith(("gpt2", "bert", "masked"))
    assert (a - b).abs().max() < (1e-5 if rounded else 1e-12) * size


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.mark.parametrize("shard", [None, "60KB"], ids=["one file", "sharded"])
def test_we_open_what_the_library_wrote(kind, shard, tmp_path: Path):
    theirs = library(kind)
    size = {} if shard is None else {"max_shard_size": shard}
    theirs.save_pretrained(tmp_path / "theirs", **size)
    files = list((tmp_path / "theirs").glob("*.safetensors"))
    assert (len(files) > 1) == bool(size)
    ours = load_pretrained(tmp_path / "theirs")
    assert next(ours.parameters()).dtype == torch.float64
    with torch.no_grad():
        close(outputs(ours, kind), outputs(theirs, kind), kind)
        half = load_pretrained(tmp_path / "theirs", dtype=torch.float32)
        error = outputs(half, kind) - outputs(theirs.float(), kind)
    assert error.abs().max() < 2e-4


def test_the_library_opens_what_we_wrote(kind, tmp_path: Path):
    theirs = library(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    told = theirs.config.to_dict()
    ids = {key: told[key] for key in told if key.endswith("token_id")}
    save_pretrained(ours, tmp_path / "ours", extra=ids, shard_bytes=60_000)
    again, told = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float64
    )
    for what in ("unexpected_keys", "mismatched_keys"):
        assert not told[what]
    assert {n for n in told["missing_keys"] if "positions" not in n} == set()
    with torch.no_grad():
        close(outputs(again.eval(), kind), outputs(theirs, kind), kind)
    mine = load_pretrained(tmp_path / "ours")
    assert mine.config == ours.config
    for name, tensor in model_tensors(ours).items():
        assert torch.equal(mine.state_dict()[name], tensor)


def test_the_gradients_are_theirs(kind, tmp_path: Path):
    theirs = library(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    losses = [outputs(m, kind).logsumexp(-1).mean() for m in (ours, theirs)]
    assert abs(losses[0] - losses[1]) < 1e-7
    for loss in losses:
        loss.backward()
    named = dict(ours.named_parameters())
    family = architecture(KINDS[kind][1])
    gradients = {
        name: p.grad
        for name, p in theirs.named_parameters()
        if p.grad is not None
    }
    if "final_logits_bias" in family.tensors:  # a buffer there
        gradients["final_logits_bias"] = named["bias"].grad
    with torch.device("meta"):
        model = family.model(ours.config).double()
    keys = {**family.tensors, **dict.fromkeys(family.copies, ())}
    if not ours.config.tied:
        keys = family.tensors
    keys |= dict.fromkeys(family.constants, ())
    checked = 0
    for name, gradient in match_keys(model, gradients, keys).items():
        if name in named:
            mine = named[name].grad
            assert (mine - gradient).norm() < 1e-5 * gradient.norm() + 1e-9
            checked += 1
    assert checked == len(named)


REAL = {
    "GPT2LMHeadModel": ("GPT2", {}, 124_439_808, 148),
    "LlamaForCausalLM": (
        "Llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
            "rope_theta": 5e5,
        },
        8_030_261_248,
        291,
    ),
    "MistralForCausalLM": ("Mistral", {}, 7_241_732_096, 291),
    "Qwen3ForCausalLM": (
        "Qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
        },
        596_049_920,
        310,
    ),
    "BertModel": ("Bert", {}, 109_482_240, 199),
}


@pytest.mark.verifies("prop-map-backwards")
@pytest.mark.parametrize("name", REAL)
def test_the_key_map_fits_at_real_size(name):
    family, sizes, count, tensors = REAL[name]
    config = getattr(transformers, f"{family}Config")(**sizes)
    with torch.device("meta"):
        theirs = getattr(transformers, name)(config)
    kind = architecture(name)
    ours = config_from(
        kind, json.loads(config.to_json_string(use_diff=False))
    )
    with torch.device("meta"):
        model = kind.model(ours)
    held = model_tensors(theirs)
    found = match_keys(model, held, kind.tensors)
    assert sum(t.numel() for t in held.values()) == count
    assert len(held) == tensors
    assert sum(found[n].numel() for n in model_tensors(model)) == count
    back = checkpoint_tensors(model, kind.tensors)
    assert {n: t.shape for n, t in back.items()} == {
        n: t.shape for n, t in held.items()
    }


def test_the_config_of_its_defaults_is_read_as_it_is_written():
    """A key that a file leaves out has the library's own default."""
    for _, (family, name, sizes) in KINDS.items():
        config = getattr(transformers, f"{family}Config")(**sizes)
        full = json.loads(config.to_json_string(use_diff=False))
        ours = config_from(architecture(name), full)
        plain = getattr(transformers, f"{family}Config")()
        default = json.loads(plain.to_json_string(use_diff=False))
        short = {
            key: value
            for key, value in full.items()
            if default.get(key) != value or key in ("head_dim", *sizes)
        }
        assert config_from(architecture(name), short) == ours


@pytest.mark.parametrize(
    "name", ["GPT2", "Llama", "Mistral", "Qwen3", "Bert", "Marian"]
)
def test_all_that_can_be_left_out_has_the_librarys_default(name):
    """No key of ours is in the file but those that must be."""
    kinds = {x for f, x, _ in KINDS.values() if f == name}
    for family in map(architecture, sorted(kinds)):
        build = getattr(transformers, f"{name}Config")
        width = next(
            n for n, k in family.keys.items() if k.field == "d_model"
        )
        # Twice as wide: the width of a head may follow, or have its own.
        wide = build(**{width: 2 * getattr(build(), width)})
        full = json.loads(wide.to_json_string(use_diff=False))
        needed = {n for n, k in family.keys.items() if k.default is REQUIRED}
        short = {n: value for n, value in full.items() if n in needed}
        assert config_from(family, short) == config_from(family, full)


def theirs_without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2 as it was first published: no prefix, and masks in the file."""
    found = {
        name.removeprefix("transformer."): t for name, t in tensors.items()
    }
    for i in range(3):
        mask = torch.ones(64, 64, dtype=torch.uint8).tril()
        found[f"h.{i}.attn.bias"] = mask[None, None]
        found[f"h.{i}.attn.masked_bias"] = torch.tensor(
            -1e4, dtype=torch.float64
        )
    return found


def test_the_first_files_of_gpt2(tmp_path: Path):
    theirs = library("gpt2")
    theirs.save_pretrained(tmp_path / "theirs")
    tensors = theirs_without_prefix(read_tensors(tmp_path / "theirs"))
    config = read_config(tmp_path / "theirs")
    for name in ("tie_word_embeddings", "n_inner", "dtype"):
        config.pop(name, None)
    save_checkpoint(tmp_path / "old", tensors, config | {"n_ctx": 64})
    with torch.no_grad():
        ours = load_pretrained(tmp_path / "old")
        close(outputs(ours, "gpt2"), outputs(theirs, "gpt2"), "gpt2")


def test_the_first_names_of_bert(tmp_path: Path):
    theirs = library("masked bert")
    theirs.save_pretrained(tmp_path / "theirs")
    tensors = read_tensors(tmp_path / "theirs")
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace(
            "Norm.bias", "Norm.beta"
        ): t
        for name, t in tensors.items()
    }
    old["cls.predictions.decoder.weight"] = old[
        "bert.embeddings.word_embeddings.weight"
    ].clone()
    old["bert.pooler.dense.weight"] = torch.zeros(60, 60).double()
    old["bert.pooler.dense.bias"] = torch.zeros(60).double()
    old["cls.seq_relationship.weight"] = torch.zeros(2, 60).double()
    old["cls.seq_relationship.bias"] = torch.zeros(2).double()
    save_checkpoint(tmp_path / "old", old, read_config(tmp_path / "theirs"))
    with torch.no_grad():
        ours = load_pretrained(tmp_path / "old")
        close(
            outputs(ours, "masked bert"),
            outputs(theirs, "masked bert"),
            "masked bert",
        )


def test_old_spellings_of_rotary_positions(tmp_path: Path):
    theirs = library("llama 3")
    theirs.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    tensors = read_tensors(tmp_path / "theirs")
    save_checkpoint(tmp_path / "old", tensors, config)
    with torch.no_grad():
        ours = load_pretrained(tmp_path / "old")
        close(outputs(ours, "llama 3"), outputs(theirs, "llama 3"), "llama 3")


@pytest.mark.parametrize("kind", ["llama linear", "qwen3", "marian"])
def test_a_tied_head_may_be_stored_again_if_it_is_equal(kind, tmp_path: Path):
    theirs = library(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    tensors = read_tensors(tmp_path / "theirs")
    first = next(n for n in tensors if "embed_tokens" in n or "shared" in n)
    config = read_config(tmp_path / "theirs")
    again = {**tensors, "lm_head.weight": tensors[first].clone()}
    save_checkpoint(tmp_path / "both", again, config, shard_bytes=50_000)
    head_only = {n: t for n, t in again.items() if n != first}
    save_checkpoint(tmp_path / "head", head_only, config)
    for name in ("both", "head"):
        with torch.no_grad():
            ours = load_pretrained(tmp_path / name)
            close(outputs(ours, kind), outputs(theirs, kind), kind)
    again["lm_head.weight"][0, 0] += 1e-9
    save_checkpoint(tmp_path / "other", again, config)
    with pytest.raises(CheckpointError, match="must be one tensor"):
        load_pretrained(tmp_path / "other")


def test_a_head_of_its_own_must_be_there(tmp_path: Path):
    library("llama").save_pretrained(tmp_path / "theirs")
    tensors = read_tensors(tmp_path / "theirs")
    del tensors["lm_head.weight"]
    config = read_config(tmp_path / "theirs")
    save_checkpoint(tmp_path / "short", tensors, config)
    with pytest.raises(CheckpointError, match=r"1 missing \('head.weight'\)"):
        load_pretrained(tmp_path / "short")


def test_the_table_of_positions_of_marian_is_checked(tmp_path: Path):
    theirs = library("marian")
    theirs.save_pretrained(tmp_path / "theirs")
    tensors = read_tensors(tmp_path / "theirs")
    name = "model.encoder.embed_positions.weight"
    table = theirs.state_dict()[name].float()
    config = read_config(tmp_path / "theirs")
    save_checkpoint(tmp_path / "with", {**tensors, name: table}, config)
    with torch.no_grad():
        ours = load_pretrained(tmp_path / "with", dtype=torch.float64)
        close(outputs(ours, "marian"), outputs(theirs, "marian"), "marian")
    moved = {**tensors, name: table.roll(1, 0).contiguous()}
    save_checkpoint(tmp_path / "moved", moved, config)
    with pytest.raises(CheckpointError, match="embed_positions"):
        load_pretrained(tmp_path / "moved", dtype=torch.float64)


def test_the_mean_of_rows_ignores_padding(tmp_path: Path):
    theirs = library("bert")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        vectors = mean_row(ours(TOKENS, MASK), MASK)
        alone = torch.cat(
            [
                mean_row(ours(row[None, :n]), torch.ones(1, n).bool())
                for row, n in zip(TOKENS, (20, 15, 8), strict=True)
            ]
        )
    assert (vectors - alone).abs().max() < 1e-12
    assert (vectors.norm(dim=-1) - 1).abs().max() < 1e-12


def test_wrong_maps_are_found_by_outputs(tmp_path: Path):
    """Gate and up have one shape: the match is strict, and the model mute."""
    theirs = library("llama")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    swapped = {
        row: target.replace("gate", "?")
        .replace("up.", "gate.")
        .replace("?", "up")
        if "feed_forward.gate" in target or "feed_forward.up" in target
        else target
        for row, target in architecture("LlamaForCausalLM").tensors.items()
    }
    load_checkpoint(ours, tmp_path / "theirs", swapped)
    with torch.no_grad():
        error = outputs(ours, "llama") - outputs(theirs, "llama")
    assert error.abs().max() > 0.1
