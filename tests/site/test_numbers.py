"""Chapters, statements, equations and figures have one number, on the site and in print."""

import re

import pytest
from bs4 import Tag


def docname(page: str) -> str:
    return page.removesuffix(".html")


def plain(tag: Tag | None) -> str:
    """The text of a tag on one line, without the mark that links to it."""
    if tag is None:
        return ""
    for link in tag.select("a.headerlink"):
        link.extract()
    return " ".join(tag.get_text().split())


@pytest.fixture(scope="module")
def on_site(site) -> dict[str, str]:
    """The numbers that the site shows, under the labels that LaTeX has for the same things."""
    numbers = {}
    for path, page in site.written.items():
        name = docname(path)
        number = page.select_one("h1 .section-number")
        numbers[f"{name}::doc"] = plain(number)
        for statement in page.select("div.statement[id]"):
            numbers[f"{name}:{statement['id']}"] = plain(
                statement.select_one(".statement-number")
            )
        for figure in page.select("figure[id]"):
            shown = plain(figure.select_one(".caption-number"))
            numbers[f"{name}:{figure['id']}"] = shown.removeprefix("Figure ")
        for table in page.select("table[id]"):
            if shown := plain(table.select_one(".caption-number")):
                numbers[f"{name}:{table['id']}"] = shown.removeprefix(
                    "Table "
                )
        for equation in page.select("div.math[id]"):
            label = equation["id"].removeprefix("equation-")
            numbers[f"equation:{name}:{label}"] = plain(
                equation.select_one(".eqno")
            ).strip("()")
    return numbers


def left_out(site, label):
    """Tell whether a label is that of a page that is on the site alone."""
    page = label.partition("::")[0] + ".html"
    return page in site.written and page not in site.printed


def test_numbers_are_equal(site, on_site, aux):
    """The numbers of the site are LaTeX's numbers of the same things."""
    shown = {
        k: v
        for k, v in on_site.items()
        if not k.startswith("book/index:") and not left_out(site, k)
    }
    assert any(k.startswith("equation:") for k in shown)
    assert shown == {k: aux.get(k, "(no such label)") for k in shown}


def test_no_number_stands_twice(site, on_site):
    shown = [
        (
            label.split(":")[0] == "equation",
            "fig-" in label,
            ":ex-" in label,
            number,
        )
        for label, number in on_site.items()
        if number and not label.endswith("::doc")
    ]
    kinds = [
        plain(s.select_one(".statement-kind"))
        for page in site.written.values()
        for s in page.select("div.statement")
    ]
    assert len(kinds) == len(set(kinds))
    equations = [s for s in shown if s[0]]
    assert len(equations) == len(set(equations))


def squeezed(text: str) -> str:
    """Without spaces and hyphenation, which differ between a page and its extracted text."""
    return re.sub(r"[\s­]+|-\n", "", text)


def test_titles_are_printed_with_their_numbers_in_order(site, printed, aux):
    """Every statement's heading is in the text of the PDF, in the order of the chapter."""
    text = squeezed(printed)
    for path, page in site.written.items():
        place = 0
        for statement in page.select("div.statement"):
            title = statement.select_one(".statement-title")
            if title.select("span.math"):
                title = title.select_one(".statement-kind")
            heading = squeezed(plain(title))
            found = text.find(heading, place)
            assert found >= 0, (
                f"{path}: '{plain(title)}' is not in the PDF, or not in its place"
            )
            place = found


def test_captions_and_equations_are_printed_with_their_numbers(site, printed):
    text = squeezed(printed)
    for page in site.written.values():
        for number in page.select("figure .caption-number"):
            assert squeezed(plain(number)) + "." in text
        for number in page.select("div.math .eqno"):
            assert plain(number) in text


def test_contents_list_the_chapters_with_their_numbers(site, printed):
    text = squeezed(printed)
    headings = [
        plain(page.select_one("h1"))
        for p, page in site.printed.items()
        if "index" not in p
    ]
    assert headings
    for heading in headings:
        assert squeezed(heading) in text


@pytest.mark.parametrize("part", ["Appendix", "Chapter"])
def test_sections_are_numbered_alike(site, printed, part):
    """Numbers of sections, which LaTeX counts by itself, are those of the site."""
    text = squeezed(printed)
    for path, page in site.printed.items():
        number = plain(page.select_one("h1 .section-number"))
        if not number or number.isalpha() != (part == "Appendix"):
            continue
        for section in page.select("h2"):
            if not section.select("span.math"):
                assert squeezed(plain(section)) in text, (
                    f"{path}: {plain(section)}"
                )
