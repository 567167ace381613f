"""`loom check`: every result is proved, implemented, verified and refuted; no markup misleads."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loom.__main__ import main

THEOREM = "```{prf:theorem} One\n:label: thm-one\n\nOne is one.\n```\n\n"
PROOF = "```{prf:proof}\nClear.\n```\n\n"
CITED = THEOREM.replace("One is one.", "One is one {cite:p}`euclid`.")
VERIFY = "```{code-cell} python\n:verifies: thm-one\n\ndef test_one():\n    assert True\n```\n\n"
REFUTE = VERIFY.replace("verifies", "refutes").replace("test_one", "test_two")
DEFINITION = "```{prf:definition} Two\n:label: def-two\n\nTwo.\n```\n\n"
CODE = (
    "```{code-cell} python\n:tangle:\n:implements: def-two\n\nTWO = 2\n```\n"
)

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(
    write_book: Callable[[dict[str, str]], Path],
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """A function that checks a chapter and a hand-written test: the status, and what is said."""

    def run(text: str, test: str = "") -> tuple[int, str]:
        chapter = {"book/diffusion/a.md": f"# Chapter\n\n{text}"}
        tests = {"tests/diffusion/test_a.py": test} if test else {}
        root = write_book(chapter | tests)
        assert main(["-C", str(root), "tangle"]) == 0
        return main(["-C", str(root), "check"]), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (THEOREM + PROOF + VERIFY + REFUTE, ""),
        (CITED + VERIFY + REFUTE, ""),
        (THEOREM + VERIFY + REFUTE, "neither proved nor cited"),
        (THEOREM + PROOF + REFUTE, "verified by no test"),
        (THEOREM + PROOF + VERIFY, "without a negative control"),
        (DEFINITION, "implemented by no code"),
        (DEFINITION + CODE, ""),
        (
            "$$\n\\begin{align}\nx\n\\end{align}\n$$\n",
            "numbered otherwise in print",
        ),
        ("$$\n\\begin{align*}\nx\n\\end{align*}\n$$\n", ""),
        ("See [this](#eq-one).\n", "breaks in print"),
        (
            "One.\n\n$\frac12 + \theta$\n",
            "a.md:10: L35 a control character, '\\x0c', in column 2",
        ),
        (
            "```{code-cell} python\nx = 1\t# a tab\n```\n",
            "L35 a control character, '\\t', in column 6",
        ),
        (
            THEOREM.replace(":label: thm-one\n\n", ""),
            "L29 this theorem has no ':label:'",
        ),
        (
            "```{solution} ex-one\nSo.\n```\n",
            "L14 no chapter has the label 'ex-one'",
        ),
    ],
)
def test_what_is_missing(text: str, said: str, check: Check) -> None:
    status, problems = check(text)
    assert said in problems
    assert (status, problems.count("\n")) == ((1, 1) if said else (0, 0))


def test_hand_written_tests_count(check: Check) -> None:
    marked = (
        "import pytest\n\n\n@pytest.mark.verifies('thm-one')\n@pytest.mark.refutes('thm-one')\n"
        "def test_one():\n    assert True\n\n\n@pytest.mark.verifies('thm-none')\n"
        "def test_none():\n    assert True\n"
    )
    said = "test_a.py:10: L14 no chapter has the label 'thm-none'\n"
    assert check(THEOREM + PROOF, marked) == (1, f"tests/diffusion/{said}")


def test_a_hand_written_test_that_does_not_parse(check: Check) -> None:
    broken = (
        "import pytest\n\n\n@pytest.mark.slow\ndef test_one(:\n    pass\n"
    )
    status, said = check("", broken)
    assert status == 1
    assert said.startswith("tests/diffusion/test_a.py:5: L02")


def test_an_example_of_markup_is_not_judged(check: Check) -> None:
    example = (
        "````md\n" + THEOREM + "\\begin{align}\n````\n\n% \\begin{align}\n"
    )
    assert check(example) == (0, "")


LEMMA = THEOREM.replace("thm-one", "lem-zero").replace("theorem", "lemma")
CODED = """\
```{prf:definition} Two
:label: def-two

Two.
```

```{code-cell} python
:tangle:
:implements: def-two

def two():
    return 2
```

```{code-cell} python
:tangle:

def unrelated():
    return 3
```

```{prf:theorem} One
:label: thm-one

One is one.
```

```{prf:proof}
By {prf:ref}`def-two`.
```

"""


def reaching(verb: str, code: str) -> str:
    return (
        f"```{{code-cell}} python\n:{verb}: thm-one\n\n"
        f"def test_{verb}():\n    assert {code}\n```\n\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            CODED
            + reaching("verifies", "two()")
            + reaching("refutes", "two()"),
            "",
        ),
        (
            CODED
            + reaching("verifies", "unrelated()")
            + reaching("refutes", "two()"),
            "verified by tests that never reach",
        ),
        (
            CODED + reaching("verifies", "two()") + reaching("refutes", "1"),
            "refuted by tests that never reach",
        ),
        (
            THEOREM
            + "```{prf:proof}\nBy {prf:ref}`lem-zero`.\n```\n\n"
            + VERIFY
            + REFUTE
            + LEMMA
            + PROOF
            + VERIFY.replace("one", "zero").replace("thm", "lem")
            + REFUTE.replace("one", "zero")
            .replace("thm", "lem")
            .replace("two", "three"),
            "the proof of 'thm-one' uses 'lem-zero', which stands later",
        ),
    ],
)
def test_results_rest_on_what_stands_before_and_tests_reach_it(
    text: str, said: str, check: Check
) -> None:
    status, problems = check(text)
    assert said in problems
    assert (status, problems.count("\n")) == ((1, 1) if said else (0, 0))


def test_results_that_rest_on_each_other(check: Check) -> None:
    circle = (
        LEMMA
        + "```{prf:proof}\nBy {prf:ref}`thm-one`.\n```\n\n"
        + THEOREM
        + "```{prf:proof}\nBy {prf:ref}`lem-zero`.\n```\n\n"
    )
    status, said = check(circle)
    assert status == 1
    assert (
        "L33 results rest on each other: lem-zero -> thm-one -> lem-zero"
        in said
    )
