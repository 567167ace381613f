"""Checkpoints: what goes in comes out, and what is bad is refused."""

import pytest
import torch
from torch import nn

from tangled.foundations.checkpoint import (
    CheckpointError,
    load_checkpoint,
    match_keys,
    model_tensors,
    read_shapes,
    save_checkpoint,
)


@pytest.mark.verifies("prop-strict-match")
def test_a_model_comes_back(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_checkpoint(tmp_path / "a", model_tensors(model), {})
    load_checkpoint(other, tmp_path / "a")
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)


@pytest.mark.refutes("prop-strict-match")
def test_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a", model_tensors(nn.Linear(3, 2)), {})
    with pytest.raises(CheckpointError, match="1 extra .'bias'.$"):
        match_keys(nn.Linear(3, 2, bias=False), read_shapes(tmp_path / "a"))
