"""Checks of the chapter “Loading the world's checkpoints”.

Tangled from book/attention/pretrained.md.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangled.attention.generation import Cache, LayerCache, places_of
from tangled.attention.modern_block import LanguageModel, ModernConfig
from tangled.attention.multi_head import MultiHeadAttention
from tangled.attention.pretrained import GPT2, checkpoint_tensors, config_from
from tangled.workshop.checkpoint import KeyMap, match_keys


def check_backwards(back: Callable[[nn.Module, KeyMap], Mapping]) -> None:
    """Check that a GPT-2 written under its names is read back unchanged."""
    model = LanguageModel(
        config_from(
            GPT2, {"vocab_size": 11, "n_embd": 6, "n_layer": 2, "n_head": 2}
        )
    )
    for p in model.parameters():
        nn.init.normal_(p)
    file = back(model, GPT2.tensors)
    assert file["transformer.h.1.attn.c_attn.weight"].shape == (6, 18)
    again = match_keys(model, file, GPT2.tensors)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), f"{name} is another"


def test_what_is_written_is_read():
    check_backwards(checkpoint_tensors)


def reordered(model: nn.Module, keys: KeyMap) -> Mapping[str, Tensor]:
    """Join values, keys and queries, in this order."""
    return checkpoint_tensors(  # WRONG
        model,
        {n: t[::-1] if isinstance(t, tuple) else t for n, t in keys.items()},
    )


def unturned(model: nn.Module, keys: KeyMap) -> Mapping[str, Tensor]:
    """Forget that the file has (in, out), where nobody will notice."""
    file = checkpoint_tensors(model, keys)
    square = "transformer.h.1.attn.c_proj.weight"
    return {**file, square: file[square].t()}  # WRONG


def test_another_order_and_a_matrix_not_turned_are_caught():
    for wrong, name in ((reordered, "w_q"), (unturned, "w_o")):
        with pytest.raises(AssertionError, match=f"{name}.* is another"):
            check_backwards(wrong)


def check_cache(
    cache: Callable[[int, int], Sequence],
    places: Callable[[int, int], Tensor] = torch.arange,
) -> None:
    """Check chunks against the whole, with groups, a window and rotation."""
    torch.manual_seed(0)
    config = ModernConfig(
        31, 24, 2, 6, 40, n_kv_heads=2, window=5, qk_norm=True
    )
    model = LanguageModel(config).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    tokens = torch.randint(31, (2, 12))
    kept, parts, begin = cache(2, 12), [], 0
    with torch.no_grad():
        whole = model(tokens)
        for n in (4, 1, 3, 1, 3):
            end = begin + n
            now = {"places": places(begin, end), "cache": kept}
            parts.append(model(tokens[:, begin:end], **now))
            begin = end
    error = (torch.cat(parts, 1) - whole).abs().amax((0, 2))
    assert error[:4].max() < 1e-12, "the first chunk differs"
    assert error[4:].max() < 1e-12, "later chunks differ"


def test_a_cache_changes_nothing():
    check_cache(Cache)


class Hasty(LayerCache):
    """A cache that lets go of a place that is still read."""

    def keys_values(self, layer, read, rotate=None):
        if self.length >= layer.window:
            self.k, self.v = self.k[:, :, 1:], self.v[:, :, 1:]  # WRONG
        return super().keys_values(layer, read, rotate)


def aligned_first(q, k, v, mask=None, causal=False, **_):
    """Let query i read the keys 0..i: as if a chunk began the text."""
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )  # WRONG


def test_caches_that_mix_up_places_are_caught():
    def hasty(n_layers, capacity):
        return [(Hasty(capacity), None) for _ in range(n_layers)]

    with pytest.raises(AssertionError, match="later chunks differ"):
        check_cache(hasty)
    with pytest.raises(AssertionError, match="later chunks differ"):
        check_cache(Cache, lambda begin, end: torch.arange(end - begin))
    where = sys.modules[MultiHeadAttention.__module__]
    with (
        mock.patch.object(where, "attention", aligned_first),
        pytest.raises(AssertionError, match="later chunks differ"),
    ):
        check_cache(Cache)


def check_padding(
    places: Callable[[Tensor], Tensor], hide: bool = True
) -> None:
    """Check a padded batch against its prompts alone."""
    torch.manual_seed(0)
    config = ModernConfig(31, 24, 2, 6, 40, 16, positions="learned")
    model = LanguageModel(config).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    tokens, lengths = torch.randint(31, (3, 8)), (8, 5, 1)
    mask = torch.arange(8) >= 8 - torch.tensor(lengths)[:, None]
    with torch.no_grad():
        batch = model(tokens, mask if hide else None, places=places(mask))
        for row, n in enumerate(lengths):
            alone = model(tokens[row : row + 1, 8 - n :])[0]
            error = (batch[row, 8 - n :] - alone).abs().max()
            assert error < 1e-12, f"the prompt of {n} differs"


def test_a_padded_batch_is_its_prompts():
    check_padding(places_of)


def test_columns_as_places_and_padding_in_sight_are_caught():
    def columns(mask):
        return torch.arange(mask.shape[1]).expand(mask.shape)  # WRONG

    with pytest.raises(AssertionError, match="prompt of 5 differs"):
        check_padding(columns)
    with pytest.raises(AssertionError, match="prompt of 5 differs"):
        check_padding(places_of, hide=False)  # WRONG
