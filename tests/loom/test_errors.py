"""Problems: one line each, sorted by place, none twice."""

from loom.errors import Problem, Problems


def test_problems_are_sorted_lines() -> None:
    one = Problem("book/b.md", 2, "L02", "this does not parse")
    two = Problem("book/a.md", 10, "L06", "this comes from nowhere")
    three = Problem("book/a.md", 9, "L14", "this stands twice")
    found = Problems([one, two, three, two])
    assert str(found) == (
        "book/a.md:9: L14 this stands twice\n"
        "book/a.md:10: L06 this comes from nowhere\n"
        "book/b.md:2: L02 this does not parse"
    )
