"""The programs of README do what it says."""

import re
from pathlib import Path

import pytest
import torch

from tangled.attention.modern_block import LanguageModel, ModernConfig
from tangled.attention.pretrained import save_pretrained

README = Path(__file__).parents[1] / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "my-llama" in program:  # a folder that the reader has
        torch.manual_seed(0)
        (tmp_path / "models").mkdir()
        config = ModernConfig(32_000, 16, 1, 2, 32)
        save_pretrained(LanguageModel(config), tmp_path / "models/my-llama")
    names = {"__name__": "readme"}
    exec(compile(program, "README.md", "exec"), names)
    assert capsys.readouterr().out
    if "samples" in names:
        assert (names["samples"].abs() - 1).abs().mean() < 0.25
