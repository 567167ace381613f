"""A bare machine: what is installed is known, and what changed is installed anew."""

from pathlib import Path

import pytest

from loom import bootstrap


def test_a_package_file_names_packages_and_alternatives() -> None:
    text = (
        "# for print\n\nlatexmk\npython3-venv | python3.12-venv  # either\n"
    )
    assert bootstrap.packages(text) == [
        ["latexmk"],
        ["python3-venv", "python3.12-venv"],
    ]


def test_an_environment_is_current_until_its_inputs_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in bootstrap.INPUTS:
        name.write_text("one==1\n")
    python = bootstrap.VENV / "bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert not bootstrap.environment_is_current()
    bootstrap.STAMP.write_text(bootstrap.digest())
    assert bootstrap.environment_is_current()
    bootstrap.INPUTS[0].write_text("one==2\n")
    assert not bootstrap.environment_is_current()


def test_what_no_one_may_install_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not bootstrap.install_packages(["latexmk"])
    said = capsys.readouterr().err
    assert "These Debian packages are missing: latexmk\n" in said
