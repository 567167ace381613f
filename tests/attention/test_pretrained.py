"""What is read, what is refused, and what comes back: folders without any library."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tangled.attention import pretrained
from tangled.attention.modern_block import LanguageModel, ModernConfig
from tangled.attention.positions import LinearScaling, Llama3Scaling
from tangled.attention.pretrained import (
    ARCHITECTURES,
    HARMLESS,
    Encoder,
    EncoderConfig,
    Key,
    MaskedLanguageModel,
    Translator,
    architecture,
    checkpoint_tensors,
    config_from,
    config_to,
    load_pretrained,
    save_pretrained,
)
from tangled.attention.transformer import TransformerConfig
from tangled.workshop.checkpoint import (
    CheckpointError,
    match_keys,
    model_tensors,
    read_config,
    read_tensors,
    save_checkpoint,
)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}
SMALL = {"vocab": 31, "d_model": 24, "n_layers": 2, "n_heads": 6, "d_ff": 40}
GPT2 = {
    "positions": "learned",
    "norm": "layer",
    "feed_forward": "gelu_tanh",
    "attention_bias": True,
    "feed_forward_bias": True,
    "dropout": 0.1,
}
# One model of each architecture, by the name that its folder gets.
MODELS = {
    "GPT2LMHeadModel": (LanguageModel, ModernConfig, GPT2),
    "LlamaForCausalLM": (
        LanguageModel,
        ModernConfig,
        {
            "n_kv_heads": 3,
            "tied": False,
            "rotary_base": 500.0,
            "rotary_scaling": Llama3Scaling(8.0, 1.0, 4.0, 32),
        },
    ),
    "MistralForCausalLM": (
        LanguageModel,
        ModernConfig,
        {"window": 5, "d_head": 6, "rotary_scaling": LinearScaling(2.0)},
    ),
    "Qwen3ForCausalLM": (LanguageModel, ModernConfig, {"qk_norm": True}),
    "BertModel": (Encoder, EncoderConfig, {"pooler": True}),
    "BertForMaskedLM": (MaskedLanguageModel, EncoderConfig, {}),
    "MarianMTModel": (
        Translator,
        TransformerConfig,
        {"positions": "sinusoidal_halves", "feed_forward": "silu"},
    ),
}


def made(name: str) -> nn.Module:
    model, config, changes = MODELS[name]
    torch.manual_seed(0)
    built = model(config(**{**SMALL, **changes}))
    for p in built.parameters():
        nn.init.normal_(p)
    return built


def explicit(config: ModernConfig) -> ModernConfig:
    return replace(
        config,
        n_kv_heads=config.n_kv_heads or config.n_heads,
        d_head=config.d_head or config.d_model // config.n_heads,
    )


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


def test_every_architecture_is_tried_here():
    assert MODELS.keys() == ARCHITECTURES.keys()


@pytest.mark.verifies("prop-map-backwards")
def test_what_is_written_is_read(name):
    model = made(name)
    keys = architecture(name).tensors
    file = checkpoint_tensors(model, keys)
    assert not file.keys() & model.state_dict().keys() - {"bias"}
    again = match_keys(model, file, keys)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again[key], tensor)


def test_a_file_has_the_order_of_the_model():
    """So each shard holds whole layers, and a reader can let go of it."""
    file = checkpoint_tensors(
        made("GPT2LMHeadModel"), architecture("GPT2LMHeadModel").tensors
    )
    layers = [name.split(".")[2] for name in file if ".h." in name]
    assert layers == sorted(layers)


@pytest.mark.parametrize("limit", [10**9, 5000], ids=["one file", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_brings_a_model_back(name, limit, dtype, tmp_path: Path):
    model = made(name).to(dtype)
    save_pretrained(model, tmp_path / "m", shard_bytes=limit)
    theirs = read_config(tmp_path / "m")
    assert theirs["architectures"] == [name]
    assert theirs["torch_dtype"] == str(dtype).removeprefix("torch.")
    again = load_pretrained(tmp_path / "m")
    assert type(again) is type(model)
    assert not again.training
    config = model.config
    if isinstance(config, ModernConfig):
        config = explicit(config)
    assert again.config == config
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
        assert again.state_dict()[key].dtype == dtype
    assert len(model_tensors(again)) == len(model_tensors(model))


def test_dtype_and_mmap(tmp_path: Path):
    save_pretrained(made("LlamaForCausalLM"), tmp_path / "m")
    for mmap in (False, True):
        half = load_pretrained(tmp_path / "m", dtype=torch.float16, mmap=mmap)
        assert {p.dtype for p in half.parameters()} == {torch.float16}
        plain = load_pretrained(tmp_path / "m", mmap=mmap)
        assert {p.dtype for p in plain.parameters()} == {torch.float32}


def test_extra_keys_are_written(tmp_path: Path):
    save_pretrained(
        made("LlamaForCausalLM"), tmp_path / "m", extra={"eos_token_id": 7}
    )
    assert read_config(tmp_path / "m")["eos_token_id"] == 7
    load_pretrained(tmp_path / "m")


def test_todays_spelling_is_yesterdays():
    old = LLAMA | {
        "rope_theta": 7e4,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "torch_dtype": "float16",
    }
    new = LLAMA | {
        "rope_parameters": {
            "rope_type": "linear",
            "rope_theta": 7e4,
            "factor": 4.0,
        },
        "dtype": "float16",
    }
    family = architecture("LlamaForCausalLM")
    first, second = (config_from(family, c) for c in (old, new))
    assert first == second
    assert first.rotary_base == 7e4
    assert first.rotary_scaling == LinearScaling(4.0)


@pytest.mark.parametrize(
    ("older", "name"),
    [
        ({"rope_theta": 5.0}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling"),
    ],
)
def test_two_spellings_of_one_thing_must_agree(older, name):
    family = architecture("LlamaForCausalLM")
    rope = {"rope_theta": 7e4, "rope_type": "default"}
    now = LLAMA | {"rope_parameters": rope}
    assert config_from(family, now | {name: None}) == config_from(family, now)
    again = now | {"rope_theta": 7e4}
    assert config_from(family, again) == config_from(family, now)
    with pytest.raises(
        ValueError, match=f"rope_parameters and {name} differ"
    ):
        config_from(family, now | older)


@pytest.mark.parametrize(
    "change", [{"num_key_value_heads": 0}, {"head_dim": 0}, {"head_dim": 4.0}]
)
def test_a_size_of_nothing_is_no_default(change, plain_errors):
    with pytest.raises(ValueError, match="must be a whole number from 1 on"):
        config_from(architecture("LlamaForCausalLM"), LLAMA | change)


def test_every_key_is_of_one_kind():
    """Honoured, harmless or refused, and nothing twice."""
    for family in ARCHITECTURES.values():
        assert not family.keys.keys() & family.fixed.keys()
        assert not HARMLESS & (family.keys.keys() | family.fixed.keys())
        assert {*family.fields} & {k.field for k in family.keys.values()} == (
            set()
        )


def test_every_honoured_key_changes_the_configuration(name):
    """No row reads a key and drops it."""
    family = architecture(name)
    _, config, changes = MODELS[name]
    plain = config_to(family, config(**{**SMALL, **changes}))
    before = config_from(family, plain)
    other = {
        bool: lambda v: not v,
        int: lambda v: 2 * v,
        float: lambda v: v / 2 + 0.1,
        str: lambda v: "relu",
        dict: lambda v: None,
        type(None): lambda v: 9,
    }
    twins: dict[str, list[str]] = {}
    for key, row in family.keys.items():
        twins.setdefault(row.field, []).append(key)
    for names in twins.values():
        value = plain[names[0]]
        if names == ["rope_scaling"] and value is None:
            new = {"rope_type": "linear", "factor": 3.0}
        else:
            new = other[type(value)](value)
        changed = plain | dict.fromkeys(names, new)
        assert config_from(family, changed) != before, names
        if len(names) > 1:
            with pytest.raises(ValueError, match=names[1]):
                config_from(family, plain | {names[1]: new})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}},
            "yarn",
        ),
        (
            {
                "rope_parameters": {
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "type": "yarn"}},
            "rope_scaling",
        ),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false'"),
        ({"attention_bias": None}, "attention_bias = None"),
        ({"rms_norm_eps": None}, "rms_norm_eps = None"),
        ({"rope_theta": "1e4"}, "rope_theta = '1e4'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"sliding_window": 8}, r"sliding_window \(unknown\)"),
        ({"quantization_config": {}}, r"quantization_config \(unknown\)"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            r"layer_types \(unknown\)",
        ),
        (
            {"hidden_act": "gelu", "logit_scale": 2.0},
            r"logit_scale \(unknown\), hidden_act = 'gelu'",
        ),
    ],
)
def test_what_cannot_be_done_is_named(change, told):
    with pytest.raises(
        ValueError, match=f"no model of this book has.*{told}"
    ):
        config_from(architecture("LlamaForCausalLM"), LLAMA | change)


def test_a_key_can_be_passed_over_at_ones_own_risk(tmp_path: Path):
    save_pretrained(made("LlamaForCausalLM"), tmp_path / "m")
    tensors, config = (
        read_tensors(tmp_path / "m"),
        read_config(tmp_path / "m"),
    )
    save_checkpoint(tmp_path / "n", tensors, config | {"new_thing": 1})
    with pytest.raises(ValueError, match=r"/n: .*new_thing \(unknown\)"):
        load_pretrained(tmp_path / "n")
    load_pretrained(tmp_path / "n", ignore=["new_thing"])


def test_a_size_that_is_missing_is_named():
    short = {k: v for k, v in LLAMA.items() if k != "hidden_size"}
    with pytest.raises(ValueError, match=r"hidden_size \(missing\)"):
        config_from(architecture("LlamaForCausalLM"), short)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["GemmaForCausalLM"],
            "no architecture 'GemmaForCausalLM', but Bert",
        ),
        ([], "architectures must be one"),
        (None, "architectures must be one"),
        (["BertModel", "LlamaForCausalLM"], "architectures must be one"),
    ],
)
def test_an_architecture_that_is_not_known(names, told, tmp_path: Path):
    config = LLAMA | {"architectures": names}
    save_checkpoint(tmp_path / "m", {"a": torch.ones(1)}, config)
    with pytest.raises(ValueError, match=told):
        load_pretrained(tmp_path / "m")


def test_two_dtypes_ask_for_one(tmp_path: Path):
    model = made("LlamaForCausalLM")
    model.stack.norm.half()
    tensors = checkpoint_tensors(
        model, ARCHITECTURES["LlamaForCausalLM"].tensors
    )
    theirs = config_to(architecture("LlamaForCausalLM"), model.config)
    head = {"architectures": ["LlamaForCausalLM"]}
    save_checkpoint(tmp_path / "m", tensors, theirs | head)
    with pytest.raises(ValueError, match="name a dtype"):
        load_pretrained(tmp_path / "m")
    load_pretrained(tmp_path / "m", dtype=torch.float32)


def test_a_shard_that_is_cut_short_is_refused(tmp_path: Path):
    save_pretrained(
        made("LlamaForCausalLM"), tmp_path / "m", shard_bytes=5000
    )
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=shard.name):
        load_pretrained(tmp_path / "m")
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        load_pretrained(tmp_path / "m")


def test_a_layer_too_few_is_refused(tmp_path: Path):
    save_pretrained(made("LlamaForCausalLM"), tmp_path / "m")
    tensors = read_tensors(tmp_path / "m")
    config = read_config(tmp_path / "m")
    save_checkpoint(
        tmp_path / "n", tensors, config | {"num_hidden_layers": 3}
    )
    with pytest.raises(CheckpointError, match="missing"):
        load_pretrained(tmp_path / "n")
    save_checkpoint(
        tmp_path / "o", tensors, config | {"num_hidden_layers": 1}
    )
    with pytest.raises(CheckpointError, match="extra"):
        load_pretrained(tmp_path / "o")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"block": "parallel"}, "block = 'parallel'"),
        ({"dropout": 0.1}, "dropout = 0.1"),
        ({"rotary_pairs": "neighbours"}, "rotary_pairs = 'neighbours'"),
        ({"norm_first": False}, "norm_first = False"),
        ({"qk_norm": True, "window": 4}, "has no (window|qk_norm) = "),
    ],
)
def test_what_no_layout_can_say_is_not_written(change, told, tmp_path: Path):
    model = LanguageModel(ModernConfig(**{**SMALL, **change}))
    with pytest.raises(ValueError, match=told):
        save_pretrained(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_model_of_another_kind_is_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match="no architecture has a Linear"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "m")


def test_a_module_may_add_an_architecture(monkeypatch):
    """As later chapters do; the table is found, whoever has imported what."""
    family = replace(
        architecture("LlamaForCausalLM"),
        keys={**ARCHITECTURES["LlamaForCausalLM"].keys, "wide": Key("d_ff")},
    )
    late = SimpleNamespace(ARCHITECTURES={"Late": family})
    known = [*pretrained.modules("tangled.attention"), late]
    monkeypatch.setattr(pretrained, "modules", lambda _: known)
    assert architecture("Late") is family
    with pytest.raises(ValueError, match=r"no architecture 'Later'.*Late,"):
        architecture("Later")


def test_gpt2_says_its_width_or_leaves_it_open():
    family = architecture("GPT2LMHeadModel")
    sizes = {"vocab_size": 31, "n_embd": 24, "n_layer": 2, "n_head": 6}
    assert config_from(family, sizes).d_ff == 96
    assert config_from(family, sizes | {"n_inner": None}).d_ff == 96
    assert config_from(family, sizes | {"n_inner": 50}).d_ff == 50


def test_a_config_is_json(name):
    _, config, changes = MODELS[name]
    theirs = config_to(architecture(name), config(**{**SMALL, **changes}))
    assert json.loads(json.dumps(theirs)) == theirs
