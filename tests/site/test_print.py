"""The print edition: fonts, references, what its log says, the order of its parts."""

import re
import subprocess

import pypdf

from loom.publish.pdf import faults
from loom.read.book import read
from loom.weave.html.jupyter_notebook import HIDDEN
from loom.weave.latex.lines import LINES, Lines
from tests.site.conftest import LATEX, ROOT

# Matplotlib takes the symbols that DejaVu lacks from its Computer Modern.
FAMILIES = (
    "TeXGyrePagella",
    "TeXGyreHeros",
    "DejaVuSansMono",
    "DejaVuSans",
    "Cm",
)


def test_fonts_are_embedded_and_of_one_family(pdf):
    listed = subprocess.run(
        ["pdffonts", pdf], check=True, capture_output=True, text=True
    ).stdout
    lines = listed.splitlines()[2:]
    assert lines
    for line in lines:
        assert line[-26:].split()[0] == "yes", f"not embedded: {line}"
    names = {re.sub(r"^[A-Z]{6}\+", "", line.split()[0]) for line in lines}
    assert {n for n in names if not n.startswith(FAMILIES)} == set()
    assert any("PagellaMath" in name for name in names)


def test_log_has_no_fault():
    log = (LATEX / "signal-from-noise.log").read_text(
        "utf-8", errors="replace"
    )
    source = (LATEX / "signal-from-noise.tex").read_text("utf-8").splitlines()
    assert list(faults(log, source, Lines.load(LATEX / LINES))) == []


def test_no_reference_is_open(printed):
    assert "??" not in printed
    assert "�" not in printed


def test_no_address_of_a_page_is_printed(printed):
    assert not re.search(r"\.html\b|#code-", printed)


def test_parts_stand_in_their_order(pdf):
    reader = pypdf.PdfReader(pdf)
    titles = [
        item.title for item in reader.outline if not isinstance(item, list)
    ]
    top = " ".join(titles)
    order = ["Preface", "Diffusion", "Appendices", "References", "Index"]
    nested = [str(item) for item in reader.outline]
    places = [
        next((i for i, t in enumerate(nested) if name in t), -1)
        for name in order
    ]
    assert -1 not in places, (order, top)
    assert places == sorted(places)
    text = "\n".join(page.extract_text() for page in reader.pages[:2])
    assert "Signal from Noise" in text
    assert "the Signal from Noise authors" in text
    assert "CC BY 4.0" in text


def test_every_solution_is_printed_behind_its_exercise(site, printed):
    exercises = [
        " ".join(tag.get_text().split())
        for page in site.written.values()
        for tag in page.select("div.exercise .statement-kind")
    ]
    assert exercises
    for exercise in exercises:
        assert (
            len(
                re.findall(
                    rf"^{re.escape(exercise)}\b", printed, re.MULTILINE
                )
            )
            >= 2
        )


def test_what_the_site_folds_is_left_out(site, printed):
    """No check, no import, no checker; one line counts the checks in their place."""
    text = "".join(printed.split())
    for path, page in site.chapters.items():
        for fold in page.select(".fold .cell_input"):
            code = "".join(fold.get_text().split())
            assert code not in text, f"{path}: {code[:80]}"
        for rest in page.select("details.rest"):
            for line in rest.get_text().splitlines():
                if line.strip() in ("Args:", "Raises:"):
                    assert not re.search(
                        rf"^\s+{line.strip()}$", printed, re.MULTILINE
                    ), path
    counted = re.findall(r"Checked:\s+((?:.|\n)*?)\(", printed)
    checks = sum(int(n) for c in counted for n in re.findall(r"(\d+) ch", c))
    controls = sum(
        int(n) for c in counted for n in re.findall(r"(\d+)\s+pl", c)
    )
    lines = [
        fold.summary.get_text()
        for page in site.chapters.values()
        for fold in page.select(".fold.verify, .fold.refute")
    ]
    found = [re.search(r"(\d+) (\w+)", line).groups() for line in lines]
    assert checks == sum(int(n) for n, word in found if word[0] == "c")
    assert controls == sum(int(n) for n, word in found if word[0] == "p")


def test_pages_for_the_site_alone_are_not_printed(site, printed):
    alone = [p for p in site.written if p not in site.printed]
    assert alone
    text = "".join(printed.split())
    for path in alone:
        title = site.pages[path].select_one("h1").get_text().strip("#")
        words = title.partition("\u2002")[2] or title
        assert f"APPENDIX{words}" not in text.upper(), path


def test_no_page_holds_a_line_or_two(printed):
    """But for the pages that open a part, a page has at least five lines under its head."""
    pages = [page.strip().splitlines() for page in printed.split("\f")[:-1]]
    short = [
        (number, lines)
        for number, lines in enumerate(pages, 1)
        if len(lines) < 6
        and not re.search(
            r"^PART|^Appendices|^Signal from Noise", "\n".join(lines), re.M
        )
    ]
    assert short == []


def test_code_can_be_copied(pdf):
    """What ships and is not folded stands in the text of the PDF, letter by letter."""
    command = ["pdftotext", "-layout", str(pdf), "-"]
    text = subprocess.run(
        command, check=True, capture_output=True
    ).stdout.decode()
    source = (LATEX / "signal-from-noise.tex").read_text("utf-8")
    assert source.count("Verbatim") > 0
    squeezed = re.sub(r"\s+", "", text)
    seen = 0
    for cell in read(ROOT).cells():
        tags = re.findall(r"[\w-]+", str(cell.options.get("tags", "")))
        if cell.kind != "tangle" or HIDDEN.intersection(tags):
            continue
        for line in cell.source.split("\n"):
            if line.startswith("def "):
                where = f"{cell.chapter.path}:{cell.line}: {line}"
                assert re.sub(r"\s+", "", line) in squeezed, where
                seen += 1
    assert seen


def test_pages_are_as_many_as_were_typeset_and_none_is_empty(printed):
    pages = printed.split("\f")[:-1]
    log = (LATEX / "signal-from-noise.log").read_text("utf-8", "replace")
    (typeset,) = re.findall(r"Output written on \S+ \((\d+) pages", log)
    assert len(pages) == int(typeset)
    assert [n for n, page in enumerate(pages, 1) if not page.strip()] == []
