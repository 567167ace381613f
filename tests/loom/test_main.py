"""The command `loom`: its arguments, and how it ends."""

import pytest

from loom.__main__ import command, main


def test_no_lanes_are_refused(small_book, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["-C", str(small_book.root), "run", "--lanes", "0"])
    assert "no number of chapters from 1 on" in capsys.readouterr().err


def test_an_interruption_is_quiet(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("loom.__main__.main", interrupt)
    assert command() == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("argument", ["seconds", "run", "--help"])
def test_output_that_nobody_reads_is_quiet(small_book, argument):
    small_book.chapters(a=["print(1)"])
    process = small_book.start("-m", "loom", argument)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert err == ""
    # An unbuffered argparse passes over it.
    codes = (0, 141) if argument == "--help" else (141,)
    assert process.returncode in codes


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capsys):
    def broken():
        raise BrokenPipeError("another")

    monkeypatch.setattr("loom.__main__.main", broken)
    with pytest.raises(BrokenPipeError, match="another"):
        command()
