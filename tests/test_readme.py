"""The programs of README do what it says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    exec(compile(program, "README.md", "exec"), names)
    assert capsys.readouterr().out
    if "samples" in names:
        assert (names["samples"].abs() - 1).abs().mean() < 0.25
