"""GPT-2 of the library transformers: names and shapes at real size, numbers at toy size.

On the meta device the real model has its 124 million parameters' names and shapes and no numbers,
so a key map is checked against it without a download. At toy size the library writes checkpoints
that we read, and reads checkpoints that we write.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

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


class GPT(nn.Module):
    """GPT-2 from the parts of torch: embeddings, an encoder with a causal mask, tied output."""

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        width: int,
        heads: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        block = nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            dropout=0.0,
            activation=functools.partial(gelu, approximate="tanh"),
            norm_first=True,
            batch_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.positions.weight[:length]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.head(self.blocks(x, mask=hidden))


PARTS = {
    "ln_1.": "norm1.",
    "attn.c_attn.": "self_attn.in_proj_",
    "attn.c_proj.": "self_attn.out_proj.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "linear1.",
    "mlp.c_proj.": "linear2.",
}
KEYS = {
    "transformer.wte.weight": "tokens.weight",
    "transformer.wpe.weight": "positions.weight",
    "transformer.ln_f.weight": "blocks.norm.weight",
    "transformer.ln_f.bias": "blocks.norm.bias",
    **{
        f"transformer.h.#.{theirs}bias": f"blocks.layers.#.{ours}bias"
        for theirs, ours in PARTS.items()
    },
    **{
        f"transformer.h.#.{theirs}weight"  # a matrix is (in, out) there
        + ".T" * ("c_" in theirs): f"blocks.layers.#.{ours}weight"
        for theirs, ours in PARTS.items()
    },
}
TOY = {
    "vocab_size": 50,
    "n_positions": 16,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
}


def library(**changes: int) -> nn.Module:
    config = transformers.GPT2Config(
        **{**TOY, **changes}, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def ours() -> GPT:
    torch.manual_seed(1)
    return GPT(50, 16, 32, 4, 3).eval()


@pytest.fixture
def theirs() -> nn.Module:
    torch.manual_seed(0)
    model = library()
    for parameter in model.parameters():  # biases and norms too
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=[None, "30KB"], ids=["one file", "sharded"])
def folder(request, theirs, tmp_path: Path) -> Path:
    size = {} if request.param is None else {"max_shard_size": request.param}
    theirs.save_pretrained(tmp_path / "theirs", **size)
    files = list((tmp_path / "theirs").glob("*.safetensors"))
    assert (len(files) > 1) == bool(size)
    return tmp_path / "theirs"


def tokens() -> Tensor:
    return torch.randint(
        50, (4, 16), generator=torch.Generator().manual_seed(2)
    )


def difference(a: nn.Module, b: nn.Module, dtype: torch.dtype) -> float:
    with torch.no_grad():
        x, y = (
            out if isinstance(out, Tensor) else out.logits
            for out in (a.to(dtype)(tokens()), b.to(dtype)(tokens()))
        )
    assert 0.5 < x.std() < 50
    return ((x - y).abs().max() / x.std()).item()


def without(part: str) -> dict[str, str]:
    """The map that forgets to transpose such matrices."""
    return {
        row.removesuffix(".T") if part in row else row: target
        for row, target in KEYS.items()
    }


def real_size() -> tuple[GPT, dict[str, Tensor]]:
    with torch.device("meta"):
        model = GPT(50257, 1024, 768, 12, 12)
        peer = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    return model, model_tensors(peer)


def test_the_map_fits_the_real_gpt2_on_meta():
    model, tensors = real_size()
    found = match_keys(model, tensors, KEYS)
    assert len(tensors) == 148
    assert found.keys() == model.state_dict().keys()
    assert found["head.weight"] is found["tokens.weight"]
    once = [found[name] for name in model_tensors(model)]
    assert sum(tensor.numel() for tensor in once) == 124_439_808
    assert sum(row.endswith(".T") for row in KEYS) == 4


def test_slips_that_the_match_finds_at_real_size():
    model, tensors = real_size()
    with pytest.raises(CheckpointError, match="36 misshaped"):
        match_keys(model, tensors, without("c_"))
    fewer = {n: t for n, t in tensors.items() if ".h.11." not in n}
    with pytest.raises(
        CheckpointError, match=r"12 missing .*'blocks\.layers\.11"
    ):
        match_keys(model, fewer, KEYS)
    with pytest.raises(CheckpointError, match="1 misshaped"):
        match_keys(GPT(50256, 1024, 768, 12, 12).to("meta"), tensors, KEYS)


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_we_read_what_the_library_wrote(folder, theirs, where):
    with torch.device(where):
        model = ours()
    load_checkpoint(model, folder, KEYS)
    assert model.head.weight is model.tokens.weight
    model.eval()
    assert difference(theirs, model, torch.float32) < 1e-5
    assert difference(theirs, model, torch.float64) < 1e-13


def test_a_square_matrix_that_is_not_transposed_is_found_by_outputs(
    folder, theirs
):
    model = ours()
    load_checkpoint(model, folder, without("attn.c_proj"))
    assert difference(theirs, model, torch.float64) > 0.1


def test_our_copy_of_its_files_is_the_same_for_it(folder, theirs, tmp_path):
    """Whatever the library wrote, we read and write, and the library reads again."""
    save_checkpoint(
        tmp_path / "copy", read_tensors(folder), read_config(folder)
    )
    again = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "copy"
    ).eval()
    assert difference(theirs, again, torch.float32) == 0
    if (folder / "model.safetensors").exists():
        files = [f / "model.safetensors" for f in (folder, tmp_path / "copy")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("limit", [10**9, 30_000])
def test_the_library_reads_what_we_write(tmp_path, limit):
    """Our weights under its names; the names go through the map backwards."""
    model, peer = ours(), library()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    tensors = {n: torch.zeros_like(t) for n, t in model_tensors(peer).items()}
    for name, view in match_keys(model, tensors, KEYS).items():
        view.copy_(model.state_dict()[name])
    save_checkpoint(
        tmp_path / "ours", tensors, peer.config.to_dict(), shard_bytes=limit
    )
    held = read_tensors(tmp_path / "ours", device="meta")
    assert {n: t.shape for n, t in held.items()} == {
        n: t.shape for n, t in tensors.items()
    }
    loaded, told = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not told[what]
    assert difference(loaded.eval(), model, torch.float64) < 1e-13


def test_its_index_says_what_ours_says(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    tensors = read_tensors(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", tensors, {}, shard_bytes=30_000)
    told = [
        json.loads(
            (tmp_path / name / "model.safetensors.index.json").read_text()
        )
        for name in ("theirs", "ours")
    ]
    assert (
        told[0]["metadata"]["total_size"] == told[1]["metadata"]["total_size"]
    )
    assert told[0]["weight_map"].keys() == told[1]["weight_map"].keys()
