"""`loom html`: what is rebuilt, removed, refused and healed, on a small book woven as this one."""

import pickle
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from loom.errors import Problems
from loom.run.cache import place

# Jupyter Book's own; a build runs in a copy of the process of the tests.
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[3]
MATHJAX = "tex-chtml-full.js"
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="9"></svg>\n'


def test_what_is_gone_is_removed_and_what_was_removed_is_made_again(woven):
    woven.append("\n```{figure} a.svg\n:alt: Nothing.\n\nNo line.\n```\n")
    woven.write("book/part/a.svg", DRAWING)
    woven.built("tangle", "run", "html")
    assert woven.built() == "_build/html/index.html is up to date\n"
    made = {f for f in woven.html.rglob("*") if f.is_file()}

    for name in (
        "book/part/two.html",
        "code/tangled/part/one.html",
        "notebooks/part/one.ipynb",
        "_images/a.svg",
        "_static/book.css",
    ):
        (woven.html / name).unlink()
        assert "up to date" not in woven.built()
        assert (woven.html / name).is_file()
    assert {f for f in woven.html.rglob("*") if f.is_file()} == made

    (woven.root / "book/part/one.md").unlink()
    woven.chapters("two", "three")
    woven.built("tangle", "run", "html")
    here = {str(f.relative_to(woven.html)) for f in woven.html.rglob("*.*")}
    assert not {name for name in here if "/one." in name}
    assert not {"_images/a.svg", "_images/a.dark.svg"} & here
    assert {"book/part/three.html", "code/tangled/part/three.html"} <= here
    assert {"notebooks/part/three.ipynb", "notebooks/part/two.ipynb"} <= here


def test_what_was_torn_heals_at_once(woven):
    woven.built("tangle", "run", "html")

    def article():
        page = (woven.html / "book/part/one.html").read_text()
        return page.partition("<article")[2].partition("</article>")[0]

    whole = article()
    assert "Words." in whole
    state = woven.root / "_build/.doctrees"
    for file in (
        woven.html / ".buildinfo",
        state / "book/part/one.doctree",
        state / "environment.pickle",
    ):
        file.write_bytes(file.read_bytes()[:20])
        with pytest.raises((pickle.UnpicklingError, EOFError)):
            pickle.loads(file.read_bytes())
        woven.append("\nMore.\n", "two")
        woven.built()
        assert article() == whole
    assert "up to date" in woven.built()


def test_what_a_reader_would_see_as_an_error_is_refused(woven):
    woven.built("tangle", "run")
    mathjax = woven.root / "book/_static/mathjax"
    mathjax.mkdir()
    shutil.copy(ROOT / f"book/_static/mathjax/{MATHJAX}", mathjax)
    text = (woven.root / "book/part/one.md").read_text()
    line = text.count("\n") + 2
    for wrong, said in (
        (
            r"Let $\vx=\vepss$.",
            r"\vepss is no command of MathJax, and no macro",
        ),
        (r"Let $\{a\frac{1}{b$.", r"the braces of this formula do not close"),
        ("```{figure} a.svg\nNo alt.\n```", "this figure has no alt text"),
        (
            "```{figure} a.svg\n:alt: \n\nNo.\n```",
            "this figure has no alt text",
        ),
    ):
        woven.write("book/part/a.svg", DRAWING)
        woven.write("book/part/one.md", f"{text}\n{wrong}\n")
        place = f"book/part/one.md:{line}: WARNING: {said}"
        assert woven.refused().startswith(place)
    right = r"$\{\lfloor\hat{\vx}\rfloor\}\in\mathbb{R}$"
    figure = "```{figure} a.svg\n:alt: A dot.\n\nA dot.\n```"
    woven.write("book/part/one.md", f"{text}\n{right}\n\n{figure}\n")
    woven.built()


def test_a_file_beside_the_chapters_is_named_with_its_line(woven):
    macros, bib = "book/_static/macros.json", "book/references.bib"
    for name, text, said in (
        (macros, '{\n"a": ', f"{macros}:2: B03 this JSON does not parse"),
        (macros, '{\n"a1": "b"}', f"{macros}:2: B05 'a1' is no macro"),
        (macros, '{"a": ["b"]}', f"{macros}:1: B05 'a' is no macro"),
        (macros, '{"a": "{b"}', f"{macros}:1: B05 'a' is no macro"),
        (bib, "@book{a,\n title={x}\n", f"{bib}:3: B03 syntax error"),
        (bib, "@book{a}\n@book{a}", f"{bib}:1: B03 repeated"),
    ):
        before = (woven.root / name).read_text()
        woven.write(name, text)
        assert woven.refused().startswith(said)
        woven.write(name, before)


def test_a_second_build_waits_for_the_first(woven):
    first = woven.start()
    lock = woven.root / "_build/loom/lock"
    while not lock.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    second = woven.start()
    for process, said in (
        (first, ""),
        (second, "another build of this book is at work: waiting for its "),
    ):
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert out.startswith(said)
    assert "up to date" in out


def test_after_ctrl_c_nothing_is_said_and_the_next_build_is_whole(woven):
    lock = woven.root / "_build/loom/lock"
    for seconds in (0.3, 1.0):
        lock.unlink(missing_ok=True)  # else it tells of the build before
        process = woven.start(start_new_session=True)
        while not lock.exists():
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "")
    woven.built()
    assert (woven.html / "book/part/two.html").is_file()


def test_what_cannot_be_written_is_one_sentence(woven):
    woven.write("_build", "in the way")
    said = "L31 this file cannot be written: "
    assert said in woven.refused()
    (woven.root / "_build").unlink()
    woven.built("tangle", "run")

    def full():
        # As on a full disk, but without one: no file may be longer.
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    process = woven.start(preexec_fn=full)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    woven.built()


def test_a_path_that_jupyter_cache_misreads_is_refused(tmp_path):
    for name in ("a%20b", "a?b"):
        with pytest.raises(Problems, match="in its path"):
            place(tmp_path / name)
    assert place(tmp_path / "100% sure, ê").parent.parent.name[:3] == "100"


@pytest.mark.parametrize("name", ["a chapter", "tête"])
def test_a_name_that_is_no_address_is_refused(woven, name):
    woven.write(f"book/part/{name}.md", "# Title\n")
    woven.chapters(name)
    assert f"B03 'book/part/{name}' has more than" in woven.refused()
