"""Folders of trained weights in the layout of the library transformers, read and written.

Tangled from book/attention/pretrained.md.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from safetensors import safe_open
from torch import Tensor, nn

from tangled.attention.modern_block import LanguageModel, ModernConfig
from tangled.attention.positions import (
    LinearScaling,
    Llama3Scaling,
    sinusoidal,
)
from tangled.attention.transformer import (
    Embedding,
    EncoderDecoder,
    FeedForward,
    Stack,
    TransformerConfig,
    keys_mask,
    modules,
    part,
)
from tangled.workshop.checkpoint import (
    CheckpointError,
    KeyMap,
    load_checkpoint,
    model_tensors,
    read_config,
    read_tensors,
    save_checkpoint,
)

__all__ = [
    "ARCHITECTURES",
    "BERT",
    "GPT2",
    "HARMLESS",
    "LLAMA",
    "MARIAN",
    "MASKED_BERT",
    "MISTRAL",
    "PARTS",
    "QWEN3",
    "REQUIRED",
    "SAME",
    "Architecture",
    "Encoder",
    "EncoderConfig",
    "Key",
    "MaskedLanguageModel",
    "Translator",
    "TypedEmbedding",
    "architecture",
    "checkpoint_tensors",
    "config_from",
    "config_to",
    "load_pretrained",
    "mean_row",
    "save_pretrained",
]

REQUIRED = object()  # the default of a key that has none
SAME = object()  # and of one that must agree with another


class Key(NamedTuple):
    """How a key of config.json becomes a field of ours, and back.

    The default is the library's, for files that leave the key out. SAME says
    that another key has the field, so that the two must agree.
    """

    field: str
    default: Any = REQUIRED
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Architecture:
    """What it takes to read a family of folders, and to write them."""

    model: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    fields: Mapping[str, Any]  # of ours, always so in this family
    keys: Mapping[str, Key]  # keys of config.json that become fields
    fixed: Mapping[str, tuple[Any, ...]]  # keys, and all that we can do
    tensors: KeyMap  # the names in its files, and ours
    older: KeyMap  # more names, from files of other days
    copies: Mapping[str, str]  # names under which ours is stored once more
    constants: Mapping[str, Callable[[Any], Tensor]] = field(
        default_factory=dict
    )  # tensors that may be in a file and follow from the configuration


# Keys of config.json that leave the way from tokens to logits alone.
_HARMLESS = """
    architectures attn_implementation bad_words_ids
    bos_token_id chunk_size_feed_forward classif_dropout classifier_dropout
    decoder_start_token_id do_sample dtype early_stopping eos_token_id
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label
    init_std initializer_range label2id length_penalty max_length min_length
    n_ctx num_beams output_attentions output_hidden_states
    output_past pad_token_id prefix pretraining_tp problem_type return_dict
    sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj
    task_specific_params temperature tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version unk_token_id use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())
# What can be otherwise in some model of the library, and in none of ours.
_FIXED = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "tie_encoder_decoder": (False,),
}

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "original",
}


def _read_scaling(theirs: Mapping[str, Any] | None) -> Any:
    """Return what slows rotary positions down; ValueError if we have none."""
    given = dict(theirs or {})
    if given.get("partial_rotary_factor") == 1:
        del given["partial_rotary_factor"]
    kinds = {given.pop(k) for k in ("rope_type", "type") if k in given}
    [kind] = kinds or {"default"}  # two kinds are a ValueError, too
    if kind == "default" and not given:
        return None
    if kind == "linear" and given.keys() == {"factor"}:
        return LinearScaling(given["factor"])
    if kind == "llama3" and given.keys() == _LLAMA3.keys():
        return Llama3Scaling(**{_LLAMA3[k]: v for k, v in given.items()})
    raise ValueError(kind)


def _write_scaling(ours: Any) -> dict[str, Any] | None:
    """Return it as config.json says it."""
    if ours is None:
        return None
    if isinstance(ours, LinearScaling):
        return {"rope_type": "linear", "factor": ours.factor}
    numbers = {name: getattr(ours, mine) for name, mine in _LLAMA3.items()}
    return {"rope_type": "llama3", **numbers}


def _old_spelling(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of today as one of yesterday, and in full.

    Of today are `rope_parameters`, and a list with a kind for each layer.
    Windows that are switched off need no size. GPT-2 leaves open how wide its
    networks are. ValueError if both spellings are there and differ.
    """
    given = {k: v for k, v in theirs.items() if not k.startswith("_")}
    if "rope_parameters" in given:
        rope = dict(given.pop("rope_parameters") or {})
        now: dict[str, Any] = {"rope_scaling": rope}
        if "rope_theta" in rope:
            now["rope_theta"] = rope.pop("rope_theta")
        for name, value in now.items():
            if given.get(name) not in (None, value):
                raise ValueError(f"rope_parameters and {name} differ")
        given |= now
    if set(given.get("layer_types") or ()) <= {"full_attention"}:
        given.pop("layer_types", None)
    if given.get("use_sliding_window") is False:
        given.pop("sliding_window", None)
        given.pop("max_window_layers", None)
    if "n_embd" in given and given.get("n_inner") is None:
        given["n_inner"] = 4 * given["n_embd"]
    return given


# What a value must be whose default is of this kind: "false" is no False.
_KINDS: dict[type, Any] = {bool: bool, float: (int, float)}


def config_from(
    architecture: Architecture,
    theirs: Mapping[str, Any],
    ignore: Sequence[str] = (),
) -> Any:
    """Return the configuration that a config.json asks for.

    Raises:
        ValueError: if a key asks for what this code cannot do, has a value
            of another kind, is missing, or is not known and not in `ignore`;
            all of them are named. Or if two spellings of one thing differ.
    """
    given = _old_spelling(theirs)
    for name in HARMLESS | {*ignore}:
        given.pop(name, None)
    fixed = _FIXED | architecture.fixed
    known = architecture.keys.keys() | fixed.keys()
    wrong = [f"{name} (unknown)" for name in given if name not in known]
    for name, values in fixed.items():
        if name in given and given[name] not in values:
            wrong.append(f"{name} = {given[name]!r}")
    ours = dict(architecture.fields)
    for name, key in architecture.keys.items():
        value = given.get(name, key.default)
        if value is REQUIRED:
            wrong.append(f"{name} (missing)")
        elif value is not SAME:
            kinds = _KINDS.get(type(key.default), object)
            try:
                if not isinstance(value, kinds):
                    raise TypeError
                read = key.read(value)
                if ours.setdefault(key.field, read) != read:
                    raise ValueError(f"another {key.field}")
            except (KeyError, TypeError, ValueError):
                wrong.append(f"{name} = {value!r}")
    if wrong:
        raise ValueError(f"no model of this book has {', '.join(wrong)}")
    return _spelled_out(architecture.config(**ours))


def _spelled_out(config: Any) -> Any:
    """Return a configuration that leaves nothing to be derived."""
    if not isinstance(config, ModernConfig):
        return config
    return replace(
        config,
        n_kv_heads=config.n_kv_heads or config.n_heads,
        d_head=config.d_k,
    )


def _told(
    architecture: Architecture, config: Any
) -> tuple[dict[str, Any], list[str]]:
    """Return a configuration as config.json says it, and what is lost."""
    config = _spelled_out(config)
    theirs = {name: values[0] for name, values in architecture.fixed.items()}
    for name, key in architecture.keys.items():
        with suppress(KeyError):  # then it stays at the library's default
            theirs[name] = key.write(getattr(config, key.field))
    again, lost = config_from(architecture, theirs), []
    for f in fields(config):
        value = getattr(config, f.name)
        # What a model begins with is no matter once it is trained.
        if value != getattr(again, f.name) and f.name != "initial_std":
            lost.append(f"{f.name} = {value!r}")
    return theirs, lost


def config_to(architecture: Architecture, config: Any) -> dict[str, Any]:
    """Return a configuration as the config.json of a family.

    Raises ValueError if the family cannot say it; what is lost is named.
    """
    theirs, lost = _told(architecture, config)
    if lost:
        raise ValueError(f"this layout has no {', '.join(lost)}")
    return theirs


_BLOCK = "stack.blocks.#."
_LLAMA_KEYS = {
    "vocab_size": Key("vocab"),
    "hidden_size": Key("d_model"),
    "num_hidden_layers": Key("n_layers"),
    "num_attention_heads": Key("n_heads"),
    "num_key_value_heads": Key("n_kv_heads", None),
    "head_dim": Key("d_head", None),
    "intermediate_size": Key("d_ff"),
    "max_position_embeddings": Key("max_length", 2048),
    "rms_norm_eps": Key("norm_eps", 1e-6),
    "rope_theta": Key("rotary_base", 10_000.0),
    "rope_scaling": Key(
        "rotary_scaling", None, _read_scaling, _write_scaling
    ),
    "attention_bias": Key("attention_bias", False),
    "mlp_bias": Key("feed_forward_bias", False),
    "attention_dropout": Key("attention_dropout", 0.0),
    "tie_word_embeddings": Key("tied", False),
}
_LLAMA_TENSORS = {
    "model.embed_tokens.weight": "embed.tokens.weight",
    **{
        f"model.layers.#.{theirs}.weight": f"{_BLOCK}{ours}"
        for theirs, ours in (
            ("input_layernorm", "attention_norm.gain"),
            ("self_attn.q_proj", "attention.w_q.weight"),
            ("self_attn.k_proj", "attention.w_k.weight"),
            ("self_attn.v_proj", "attention.w_v.weight"),
            ("self_attn.o_proj", "attention.w_o.weight"),
            ("self_attn.q_norm", "attention.q_norm.gain"),
            ("self_attn.k_norm", "attention.k_norm.gain"),
            ("post_attention_layernorm", "feed_forward_norm.gain"),
            ("mlp.gate_proj", "feed_forward.gate.weight"),
            ("mlp.up_proj", "feed_forward.up.weight"),
            ("mlp.down_proj", "feed_forward.down.weight"),
        )
    },
    "model.norm.weight": "stack.norm.gain",
    "lm_head.weight": "head.weight",
    **{
        f"model.layers.#.{theirs}.bias": f"{_BLOCK}{ours}.bias"
        for theirs, ours in (
            ("self_attn.q_proj", "attention.w_q"),
            ("self_attn.k_proj", "attention.w_k"),
            ("self_attn.v_proj", "attention.w_v"),
            ("self_attn.o_proj", "attention.w_o"),
            ("mlp.gate_proj", "feed_forward.gate"),
            ("mlp.up_proj", "feed_forward.up"),
            ("mlp.down_proj", "feed_forward.down"),
        )
    },
}
LLAMA = Architecture(
    model=LanguageModel,
    config=ModernConfig,
    fields={},
    keys=_LLAMA_KEYS,
    fixed={"model_type": ("llama",), "hidden_act": ("silu", "swish")},
    tensors=_LLAMA_TENSORS,
    older={"model.layers.#.self_attn.rotary_emb.inv_freq": ()},
    copies={"lm_head.weight": "embed.tokens.weight"},
)

_NO_BIAS = {"attention_bias", "mlp_bias"}
MISTRAL = replace(
    LLAMA,
    keys={
        **{n: k for n, k in _LLAMA_KEYS.items() if n not in _NO_BIAS},
        "num_key_value_heads": Key("n_kv_heads", 8),
        "max_position_embeddings": Key("max_length", 131_072),
        "sliding_window": Key("window", 4096),
    },
    fixed=LLAMA.fixed | {"model_type": ("mistral",)},
)
QWEN3 = replace(
    LLAMA,
    fields={"qk_norm": True},
    keys={
        **{n: k for n, k in _LLAMA_KEYS.items() if n != "mlp_bias"},
        "num_key_value_heads": Key("n_kv_heads", 32),
        "head_dim": Key("d_head", 128),
        "max_position_embeddings": Key("max_length", 32_768),
    },
    fixed={
        "model_type": ("qwen3",),
        "hidden_act": ("silu", "swish"),
        "use_sliding_window": (False,),
    },
)

# What the library calls activations, and our feed-forward networks.
_NETWORKS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
_ACTIVATIONS = {ours: theirs for theirs, ours in [*_NETWORKS.items()][::-1]}


def _network(default: Any) -> Key:
    """Return the key of an activation."""
    return Key(
        "feed_forward",
        default,
        _NETWORKS.__getitem__,
        _ACTIVATIONS.__getitem__,
    )


_GPT2_TENSORS = {
    "transformer.wte.weight": "embed.tokens.weight",
    "transformer.wpe.weight": "embed.positions.table.weight",
    "transformer.ln_f.weight": "stack.norm.weight",
    "transformer.ln_f.bias": "stack.norm.bias",
    "lm_head.weight": "head.weight",
    **{
        f"transformer.h.#.{theirs}.{kind}": f"{_BLOCK}{ours}.{kind}"
        for theirs, ours in (
            ("ln_1", "attention_norm"),
            ("ln_2", "feed_forward_norm"),
        )
        for kind in ("weight", "bias")
    },
    **{
        f"transformer.h.#.{theirs}.{kind}": tuple(
            f"{_BLOCK}{one}.{kind.removesuffix('.T')}" for one in ours
        )
        for theirs, ours in (
            (
                "attn.c_attn",
                ("attention.w_q", "attention.w_k", "attention.w_v"),
            ),
            ("attn.c_proj", ("attention.w_o",)),
            ("mlp.c_fc", ("feed_forward.up",)),
            ("mlp.c_proj", ("feed_forward.down",)),
        )
        for kind in ("weight.T", "bias")  # its matrices are [in, out]
    },
}
_GPT2_MASKS = {"h.#.attn.bias": (), "h.#.attn.masked_bias": ()}
GPT2 = Architecture(
    model=LanguageModel,
    config=ModernConfig,
    fields={
        "positions": "learned",
        "norm": "layer",
        "attention_bias": True,
        "feed_forward_bias": True,
    },
    keys={
        "vocab_size": Key("vocab"),
        "n_embd": Key("d_model"),
        "n_layer": Key("n_layers"),
        "n_head": Key("n_heads"),
        "n_inner": Key("d_ff"),
        "n_positions": Key("max_length", 1024),
        "layer_norm_epsilon": Key("norm_eps", 1e-5),
        "activation_function": _network("gelu_new"),
        "resid_pdrop": Key("dropout", 0.1),
        "embd_pdrop": Key("dropout", 0.1),
        "attn_pdrop": Key("attention_dropout", 0.1),
        "tie_word_embeddings": Key("tied", True),
    },
    fixed={
        "model_type": ("gpt2",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False, True),  # of precision only
    },
    tensors=_GPT2_TENSORS,
    older={  # the first files have no prefix, and keep their masks
        **{
            name.removeprefix("transformer."): ours
            for name, ours in _GPT2_TENSORS.items()
        },
        **_GPT2_MASKS,
        **{f"transformer.{name}": () for name in _GPT2_MASKS},
    },
    copies={"lm_head.weight": "embed.tokens.weight"},
)


def checkpoint_tensors(model: nn.Module, keys: KeyMap) -> dict[str, Tensor]:
    """Return the tensors of a model as a checkpoint has them, in its order.

    It is the key map of `match_keys` read backwards: parts are joined,
    matrices turned. A name that no row fits stays as it is.

    Implements prop-map-backwards (book/attention/pretrained.md).
    """
    held = model_tensors(model)
    order = {name: i for i, name in enumerate(held)}
    found: list[tuple[int, str, Tensor]] = []
    for row, targets in keys.items():
        names = (targets,) if isinstance(targets, str) else targets
        first = re.escape(names[0] if names else "")
        pattern = re.compile(first.replace(r"\#", "([0-9]+)"))
        for hit in [h for name in held if (h := pattern.fullmatch(name))]:
            theirs, *parts = (row, *names)
            for number in hit.groups():
                theirs, *parts = (
                    n.replace("#", number, 1) for n in (theirs, *parts)
                )
            whole = [held.pop(part) for part in parts]
            tensor = torch.cat(whole) if len(whole) > 1 else whole[0]
            plain = theirs.removesuffix(".T")
            tensor = tensor if plain == theirs else tensor.t()
            found.append((order[parts[0]], plain, tensor))
    found += [(order[name], name, tensor) for name, tensor in held.items()]
    return {name: t for _, name, t in sorted(found, key=lambda one: one[0])}


def _architectures() -> dict[str, Architecture]:
    """Return those of the tables in all modules of `tangled.attention`."""
    known: dict[str, Architecture] = {}
    for module in modules("tangled.attention"):
        known |= getattr(module, "ARCHITECTURES", {})
    return known


def architecture(name: str) -> Architecture:
    """Return the architecture that config.json calls by this name.

    It may stand in any module of `tangled.attention`. Raises ValueError if
    none has it; the known ones are listed.
    """
    known = _architectures()
    if name not in known:
        listed = ", ".join(sorted(known))
        raise ValueError(f"no architecture {name!r}, but {listed}")
    return known[name]


def _stored(folder: Path, name: str) -> Tensor:
    """Return one tensor of a folder."""
    index = folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.exists():
        file = json.loads(index.read_text())["weight_map"][name]
    with safe_open(folder / file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _key_map(
    family: Architecture, config: Any, folder: Path, held: Mapping[str, Any]
) -> KeyMap:
    """Return the names of a folder; what it holds twice must be equal."""
    keys = {**family.tensors, **family.older}
    for name, value in family.constants.items():
        if name in held:
            kept, right = _stored(folder, name), value(config)
            close = 4 * torch.finfo(kept.dtype).eps
            if kept.shape != right.shape or not torch.allclose(
                kept.double(), right.double(), rtol=0, atol=close
            ):
                raise CheckpointError(
                    f"{folder}: '{name}' is not what it was"
                )
            keys[name] = ()
    if not config.tied:
        return keys
    first = {keys[name]: name for name in held if keys.get(name)}
    for copy, target in family.copies.items():
        if copy not in held:
            continue
        original = first.get(target)
        if original is None:
            keys[copy] = target  # it has only the other name
        elif torch.equal(_stored(folder, original), _stored(folder, copy)):
            keys[copy] = ()
        else:
            raise CheckpointError(
                f"{folder}: '{original}' and '{copy}' must be one tensor, "
                "and they differ"
            )
    return keys


def load_pretrained(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    mmap: bool = False,
    ignore: Sequence[str] = (),
) -> nn.Module:
    """Return the model in a folder, ready to be used (in eval mode).

    It is built without memory and takes the weights of the file, so the peak
    is about their size.

    Args:
        folder: config.json and safetensors, in the layout of transformers.
        device: where the model will be.
        dtype: of its parameters; None: that of the file.
        mmap: leave the weights in the file until they are used.
        ignore: keys of config.json to be passed over at your own risk.

    Raises:
        ValueError: if no architecture of the book is meant, or config.json
            asks for what ours cannot do; as `config_from`.
        CheckpointError: if the folder cannot be read or does not match.
    """
    folder = Path(folder)
    theirs = read_config(folder)
    held = read_tensors(folder, "meta")
    try:
        names = theirs.get("architectures")
        if not isinstance(names, list) or len(names) != 1:
            raise ValueError(f"architectures must be one, got {names!r}")
        [name] = names
        family = architecture(name)
        config = config_from(family, theirs, ignore)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    kinds = {t.dtype for t in held.values() if t.is_floating_point()}
    if dtype is None and len(kinds) != 1:
        listed = ", ".join(sorted(map(str, kinds))) or "no numbers"
        raise ValueError(f"{folder} holds {listed}: name a dtype")
    with torch.device("meta"):
        model = family.model(config).to(dtype or kinds.pop())
    keys = _key_map(family, config, folder, held)
    away = torch.device(device).type != "cpu"
    load_checkpoint(model, folder, keys, cast=True, mmap=mmap or away)
    return model.to(device).eval()


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model to a new folder that the library transformers opens.

    The architecture is the first whose config.json can say all that ours
    says. `extra` are more keys of it, such as eos_token_id.

    Raises:
        ValueError: if no architecture can; the nearest says what it lacks.
        CheckpointError: if the folder exists or cannot be written.
    """
    tried = {
        name: _told(family, model.config)
        for name, family in _architectures().items()
        if family.model is type(model)
    }
    if not tried:
        raise ValueError(f"no architecture has a {type(model).__name__}")
    name = min(tried, key=lambda one: len(tried[one][1]))
    theirs, lost = tried[name]
    if lost:
        raise ValueError(
            f"no architecture can say this; {name}, the nearest, has no "
            + ", ".join(lost)
        )
    tensors = checkpoint_tensors(model, architecture(name).tensors)
    kind = next(iter(tensors.values())).dtype
    head = {
        "architectures": [name],
        "torch_dtype": str(kind).removeprefix("torch."),
    }
    save_checkpoint(
        folder,
        tensors,
        head | theirs | dict(extra or {}),
        shard_bytes=shard_bytes,
    )


@dataclass(frozen=True)
class EncoderConfig(TransformerConfig):
    """The sizes of an encoder in the manner of BERT, and its parts by name."""

    positions: str = "learned"
    norm_eps: float = 1e-12
    feed_forward: str = "gelu"
    embedding: str = "typed"
    scale_embedding: bool = False
    attention_dropout: float = 0.1
    types: int = 2  # kinds of tokens: first or second sentence
    pooler: bool = False  # a last layer on the first row


class TypedEmbedding(Embedding):
    """Rows of tokens, places and kinds of tokens, added and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.types = nn.Embedding(config.types, config.d_model)
        self.norm = part("norm", config)

    def forward(
        self,
        tokens: Int64[Tensor, "B n"],
        places: Int64[Tensor, "*B n"],
        types: Int64[Tensor, "B n"] | None = None,
    ) -> Float[Tensor, "B n d"]:
        """Return the rows; without types all tokens are of kind 0."""
        types = torch.zeros_like(tokens) if types is None else types
        x = self.tokens(tokens) * self.scale + self.types(types)
        return self.dropout(self.norm(self.positions(x, places)))


class Encoder(nn.Module):
    """Read a text in both directions: a row of features for each token.

    Source: Devlin et al. (2019).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = part("embedding", config)
        self.stack = Stack(config)
        d = config.d_model
        self.pooler = nn.Linear(d, d) if config.pooler else None

    def forward(
        self,
        tokens: Int64[Tensor, "B n"],
        mask: Bool[Tensor, "B n"] | None = None,
        types: Int64[Tensor, "B n"] | None = None,
    ) -> Float[Tensor, "B n d"]:
        """Return the rows; the mask is True where a token may be read."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.stack(
            self.embed(tokens, places, types), mask=keys_mask(mask)
        )

    def pooled(self, rows: Float[Tensor, "B n d"]) -> Float[Tensor, "B d"]:
        """Return what the pooler makes of the first row of each text."""
        return self.pooler(rows[:, 0]).tanh()


class MaskedLanguageModel(nn.Module):
    """Guess the tokens of a text, the hidden ones among them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.norm = part("norm", config)
        self.head = nn.Linear(config.d_model, config.vocab)
        if config.tied:
            self.head.weight = self.encoder.embed.tokens.weight

    def forward(
        self,
        tokens: Int64[Tensor, "B n"],
        mask: Bool[Tensor, "B n"] | None = None,
        types: Int64[Tensor, "B n"] | None = None,
    ) -> Float[Tensor, "B n vocab"]:
        """Return the logits of the token at each place."""
        rows = F.gelu(self.transform(self.encoder(tokens, mask, types)))
        return self.head(self.norm(rows))


def mean_row(
    rows: Float[Tensor, "B n d"], mask: Bool[Tensor, "B n"]
) -> Float[Tensor, "B d"]:
    """Return a vector of length 1 for each text: the mean of its rows."""
    told = mask.unsqueeze(-1).to(rows.dtype)
    return F.normalize((rows * told).sum(1) / told.sum(1), dim=-1)


class Translator(EncoderDecoder):
    """The Transformer of 2017 as Marian keeps it: a bias [1, vocab]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.head.bias = None
        self.bias = nn.Parameter(torch.zeros(1, config.vocab))

    def decode(self, *args: Any, **options: Any) -> Tensor:
        """Return the logits of the token after each, as `EncoderDecoder`."""
        return super().decode(*args, **options) + self.bias


# Parts by name, for `tangled.attention.transformer.part`.
PARTS = {
    "embedding": {"typed": TypedEmbedding},
    "feed_forward": {"silu": lambda c: FeedForward(c, F.silu)},
}

_BERT_KEYS = {
    "vocab_size": Key("vocab"),
    "hidden_size": Key("d_model"),
    "num_hidden_layers": Key("n_layers"),
    "num_attention_heads": Key("n_heads"),
    "intermediate_size": Key("d_ff"),
    "max_position_embeddings": Key("max_length", 512),
    "type_vocab_size": Key("types", 2),
    "layer_norm_eps": Key("norm_eps", 1e-12),
    "hidden_act": _network("gelu"),
    "hidden_dropout_prob": Key("dropout", 0.1),
    "attention_probs_dropout_prob": Key("attention_dropout", 0.1),
    "tie_word_embeddings": Key("tied", True),
}


def _bert_tensors(theirs: str, ours: str) -> dict[str, str]:
    """Return the rows of the encoder, under two prefixes."""
    return {
        **{
            f"{theirs}embeddings.{a}_embeddings.weight": f"{ours}embed.{b}"
            for a, b in (
                ("word", "tokens.weight"),
                ("position", "positions.table.weight"),
                ("token_type", "types.weight"),
            )
        },
        **{
            f"{theirs}{a}.{kind}": f"{ours}{b}.{kind}"
            for a, b in (
                ("embeddings.LayerNorm", "embed.norm"),
                *(
                    (f"encoder.layer.#.{c}", f"{_BLOCK}{d}")
                    for c, d in (
                        ("attention.self.query", "attention.w_q"),
                        ("attention.self.key", "attention.w_k"),
                        ("attention.self.value", "attention.w_v"),
                        ("attention.output.dense", "attention.w_o"),
                        ("attention.output.LayerNorm", "attention_norm"),
                        ("intermediate.dense", "feed_forward.up"),
                        ("output.dense", "feed_forward.down"),
                        ("output.LayerNorm", "feed_forward_norm"),
                    )
                ),
                ("pooler.dense", "pooler"),
            )
            for kind in ("weight", "bias")
        },
    }


def _older_bert(tensors: Mapping[str, str]) -> dict[str, Any]:
    """Return the names of its first years."""
    return {
        theirs.replace("Norm.weight", "Norm.gamma").replace(
            "Norm.bias", "Norm.beta"
        ): ours
        for theirs, ours in tensors.items()
        if "Norm." in theirs
    }


_ENCODER_TENSORS = _bert_tensors("", "")
_MASKED_TENSORS = {
    **{
        theirs: ours
        for theirs, ours in _bert_tensors("bert.", "encoder.").items()
        if "pooler" not in theirs
    },
    **{
        f"cls.predictions.transform.{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (("dense", "transform"), ("LayerNorm", "norm"))
        for kind in ("weight", "bias")
    },
    "cls.predictions.decoder.weight": "head.weight",
    "cls.predictions.bias": "head.bias",
}
BERT = Architecture(
    model=Encoder,
    config=EncoderConfig,
    fields={"pooler": True},
    keys=_BERT_KEYS,
    fixed={
        "model_type": ("bert",),
        "position_embedding_type": ("absolute",),
    },
    tensors=_ENCODER_TENSORS,
    older={
        **_older_bert(_ENCODER_TENSORS),
        "embeddings.position_ids": (),
    },
    copies={},
)
MASKED_BERT = replace(
    BERT,
    model=MaskedLanguageModel,
    fields={"feed_forward": "gelu"},
    keys={n: k for n, k in _BERT_KEYS.items() if n != "hidden_act"},
    fixed=BERT.fixed | {"hidden_act": ("gelu",)},
    tensors=_MASKED_TENSORS,
    older={
        **_older_bert(_MASKED_TENSORS),
        "bert.embeddings.position_ids": (),
        # Heads of its training that guess no tokens.
        "bert.pooler.dense.weight": (),
        "bert.pooler.dense.bias": (),
        "cls.seq_relationship.weight": (),
        "cls.seq_relationship.bias": (),
    },
    copies={
        "cls.predictions.decoder.weight": "encoder.embed.tokens.weight",
        "cls.predictions.decoder.bias": "head.bias",
    },
)

_SIDES = ("encoder", "decoder")


def _waves(config: TransformerConfig) -> Tensor:
    """Return the table of positions that Marian's files hold."""
    places = torch.arange(config.max_length)
    return sinusoidal(places, config.d_model, pairs="halves")


MARIAN = Architecture(
    model=Translator,
    config=TransformerConfig,
    fields={"positions": "sinusoidal_halves"},
    keys={
        "vocab_size": Key("vocab"),
        "decoder_vocab_size": Key("vocab", SAME),
        "d_model": Key("d_model"),
        **{f"{side}_layers": Key("n_layers") for side in _SIDES},
        "num_hidden_layers": Key("n_layers", SAME),
        **{f"{side}_attention_heads": Key("n_heads") for side in _SIDES},
        **{f"{side}_ffn_dim": Key("d_ff") for side in _SIDES},
        "max_position_embeddings": Key("max_length", 1024),
        "activation_function": _network("gelu"),
        "scale_embedding": Key("scale_embedding", False),
        "dropout": Key("dropout", 0.1),
        "attention_dropout": Key("attention_dropout", 0.0),
        "tie_word_embeddings": Key("tied", True),
    },
    fixed={
        "model_type": ("marian",),
        "is_encoder_decoder": (True,),
        "share_encoder_decoder_embeddings": (True,),
        "activation_dropout": (0.0,),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
        "add_bias_logits": (False,),
        "add_final_layer_norm": (False,),
        "normalize_before": (False,),
        "normalize_embedding": (False,),
        "static_position_embeddings": (True,),
        "extra_pos_embeddings": (0,),
    },
    tensors={
        "model.shared.weight": "embed.tokens.weight",
        "final_logits_bias": "bias",
        "lm_head.weight": "head.weight",
        **{
            f"model.{side}.layers.#.{theirs}.{kind}": (
                f"{side}.blocks.#.{ours}.{kind}"
            )
            for side in _SIDES
            for theirs, ours in (
                ("self_attn.q_proj", "attention.w_q"),
                ("self_attn.k_proj", "attention.w_k"),
                ("self_attn.v_proj", "attention.w_v"),
                ("self_attn.out_proj", "attention.w_o"),
                ("self_attn_layer_norm", "attention_norm"),
                ("encoder_attn.q_proj", "cross.w_q"),
                ("encoder_attn.k_proj", "cross.w_k"),
                ("encoder_attn.v_proj", "cross.w_v"),
                ("encoder_attn.out_proj", "cross.w_o"),
                ("encoder_attn_layer_norm", "cross_norm"),
                ("fc1", "feed_forward.up"),
                ("fc2", "feed_forward.down"),
                ("final_layer_norm", "feed_forward_norm"),
            )
            for kind in ("weight", "bias")
        },
    },
    older={},
    copies={
        "lm_head.weight": "embed.tokens.weight",
        "model.encoder.embed_tokens.weight": "embed.tokens.weight",
        "model.decoder.embed_tokens.weight": "embed.tokens.weight",
    },
    constants={
        f"model.{side}.embed_positions.weight": _waves for side in _SIDES
    },
)

# By the name in config.json; other modules may have such tables too.
ARCHITECTURES = {
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen3ForCausalLM": QWEN3,
    "BertModel": BERT,
    "BertForMaskedLM": MASKED_BERT,
    "MarianMTModel": MARIAN,
}
