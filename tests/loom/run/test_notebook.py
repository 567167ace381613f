"""A chapter as the notebook that is executed."""

from loom.run.inputs import inputs_digest
from loom.run.notebook import executable

CHECK = ":verifies: thm-sum\n\ndef test_sum():\n    assert 1 + 1 == 2"


def test_the_executed_notebook_carries_its_digest(small_book):
    small_book.chapters(a=["x = 1", CHECK])
    chapter = small_book.root / "book/a.md"
    notebook = executable(chapter, small_book.root)
    text = chapter.read_text()
    spec = notebook.metadata.kernelspec
    assert spec.digest == inputs_digest(small_book.root, text)
    assert spec.name == "python3"
    sources = [c.source for c in notebook.cells if c.cell_type == "code"]
    assert sources[0] == "x = 1"
    assert notebook.cells[-2].metadata == {"verifies": "thm-sum"}
    lines = [
        text.splitlines()[line - 1] for line in notebook.metadata.source_map
    ]
    assert [line for line in lines if "code-cell" in line]
