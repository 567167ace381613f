"""Greedy tokens of the library's own `generate`, with its own caches."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tangled.attention.generation import generate
from tangled.attention.pretrained import load_pretrained

transformers = pytest.importorskip("transformers")

DECODER = {
    "num_hidden_layers": 3,
    "hidden_size": 60,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 101,
    "vocab_size": 99,
    "max_position_embeddings": 80,
    "bos_token_id": None,
    "eos_token_id": None,
}
KINDS = {
    "GPT2LMHeadModel": transformers.GPT2Config(
        n_layer=3,
        n_embd=60,
        n_head=6,
        vocab_size=99,
        n_positions=80,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "LlamaForCausalLM": transformers.LlamaConfig(**DECODER),
    "MistralForCausalLM": transformers.MistralConfig(
        **DECODER, sliding_window=7
    ),
    "Qwen3ForCausalLM": transformers.Qwen3Config(**DECODER, head_dim=12),
    "MarianMTModel": transformers.MarianConfig(
        d_model=60,
        vocab_size=100,
        decoder_vocab_size=100,
        max_position_embeddings=80,
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 6 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 101 for side in ("encoder", "decoder")},
        pad_token_id=99,
        eos_token_id=None,
        decoder_start_token_id=99,
        forced_eos_token_id=None,
        bos_token_id=None,
    ),
}


@pytest.fixture(params=KINDS)
def pair(request, tmp_path: Path):
    """The library's model and ours of equal weights, in float64."""
    torch.manual_seed(4)
    name = request.param
    theirs = getattr(transformers, name)(KINDS[name])
    with torch.no_grad():
        for key, p in theirs.named_parameters():
            if p.ndim > 1 and "embed_positions" not in key:
                p.normal_(std=0.25 if name == "MarianMTModel" else 0.2)
    theirs = theirs.double().eval()
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, load_pretrained(tmp_path / "theirs"), name


def text(rows: object) -> Tensor:
    return torch.stack([*rows], 1)


def test_48_greedy_tokens_are_the_librarys(pair):
    """A batch of prompts of three lengths; the shorter ones are padded."""
    theirs, ours, name = pair
    tokens = torch.randint(1, 99, (3, 12))
    marian = name == "MarianMTModel"
    hidden = torch.tensor([0, 5, 9])[:, None]
    # The library counts a text's places as ours does: from its mask.
    mask = torch.arange(12) >= hidden
    if marian:
        mask = mask.flip(1)
    with torch.no_grad():
        found = theirs.generate(
            tokens,
            attention_mask=mask.long(),
            max_new_tokens=48,
            do_sample=False,
            num_beams=1,
            pad_token_id=99 if marian else 0,
        )[:, -48:]
    start = 99 if marian else None
    ours = text(generate(ours, tokens, n_new=48, mask=mask, start=start))
    assert len(found.unique()) > 5 or marian  # not one token for ever
    assert torch.equal(ours, found)


def test_a_row_ends_where_the_librarys_ends(pair):
    theirs, ours, name = pair
    tokens = torch.randint(1, 99, (4, 6))
    start = 99 if name == "MarianMTModel" else None
    free = text(generate(ours, tokens, n_new=24, start=start))
    stop = [int(free[0, 5]), int(free[1, 11])]
    with torch.no_grad():
        found = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=24,
            do_sample=False,
            num_beams=1,
            eos_token_id=stop,
            pad_token_id=0,
        )[:, 1 if start is not None else 6 :]
    rows = text(generate(ours, tokens, n_new=24, stop=stop, start=start))
    assert rows.shape == found.shape
    for mine, yours in zip(rows, found, strict=True):
        ends = torch.isin(mine, torch.tensor(stop)).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(mine)
        assert torch.equal(mine[:length], yours[:length])
        assert (mine[length:] == mine[length - 1]).all()
        assert (yours[length:] == 0).all()
