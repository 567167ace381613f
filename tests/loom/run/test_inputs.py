"""What a chapter's digest covers, and how it enters the front matter."""

from types import SimpleNamespace

import pytest
import yaml

from loom.run.inputs import inputs_digest, modules, stamped

FRONTS = {
    "flow": "kernelspec: {name: python3, display_name: Python 3}\n",
    "flow over two lines": "kernelspec: {name: python3,\n  language: python}\n",
    "block": "kernelspec:\n  name: python3\n  # which\n  language: python\n",
    "first": "kernelspec: {name: python3}  # the kernel\ntangle: a.py\n",
    "last of all": "tangle: a.py\n\nkernelspec:\n    name: python3\n\n",
}


def cell(code):
    return f"# A chapter\n\n```{{code-cell}} python\n{code}\n```\n"


@pytest.fixture
def root(tmp_path):
    """A package in which a uses b (relatively), b uses c, and d stands alone."""
    sources = {
        "tangled/__init__.py": "",
        "tangled/part/__init__.py": '"""A part."""\n',
        "tangled/part/a.py": "from .b import f\n",
        "tangled/part/b.py": "def f():\n    from tangled.other import c\n",
        "tangled/other/__init__.py": "",
        "tangled/other/c.py": "import math\nimport tangled.part.b\n",
        "tangled/other/d.py": "",
        "loom/__init__.py": "from loom.continues import continues\n",
        "loom/continues.py": "def continues(cls): ...\n",
        "constraints.txt": "torch==2.13.0\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def found(root, text):
    paths = [
        file.relative_to(root).as_posix() for file in modules(root, text)
    ]
    return {path for path in paths if not path.endswith("__init__.py")}


ABC = {"tangled/part/a.py", "tangled/part/b.py", "tangled/other/c.py"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import math, numpy as np", set()),
        ("import tangled", set()),
        ("from tangled.part import a", ABC),
        ("from tangled.part.a import f", ABC),
        ("import tangled.part.a as a", ABC),
        ("from tangled.part import (\n    a,\n)", ABC),
        (":tags: [x]\n:tangle:\n\nfrom tangled.part import a", ABC),
        ("---\ntangle: x.py\n---\nfrom tangled.part import (\n  a)", ABC),
        ("%matplotlib inline\nfrom tangled.part import (\n  a)", ABC),
        (
            "def f():\n    from tangled.other import d\nx =",
            {"tangled/other/d.py"},
        ),
        ("from tangled.other import c", ABC - {"tangled/part/a.py"}),
        ("from loom import continues", {"loom/continues.py"}),
        ("text = 'import tangled.part.a'", set()),
    ],
)
def test_modules_that_a_cell_imports(root, code, expected):
    assert found(root, cell(code)) == expected


def test_only_cells_count(root):
    text = "# T\n\n```python\nimport tangled.part.a\n```\nimport tangled.part.a\n"
    assert found(root, text) == set()
    assert found(root, text + cell("import tangled.other.d")) == {
        "tangled/other/d.py"
    }


@pytest.mark.parametrize(
    "fence",
    [
        "~~~\n{}\n~~~",
        "```\n{}\n`````",
        "````\n```\n{}\n````",
        "``` \n{}\n```",
    ],
)
def test_every_fence_of_a_cell_counts(root, fence):
    body = fence.format("import tangled.other.d")
    opening, _, rest = body.partition("\n")
    text = f"# T\n\n{opening}{{code-cell}} python\n{rest}\n"
    assert found(root, text) == {"tangled/other/d.py"}
    assert found(root, f"````md\n{cell('import tangled.other.d')}````") == (
        set()
    )


def test_what_changes_the_digest(root, monkeypatch):
    text = cell("from tangled.part import a")
    before = inputs_digest(root, text)

    def after(name, addition):
        old = (root / name).read_bytes()
        (root / name).write_bytes(old + addition)
        new = inputs_digest(root, text)
        (root / name).write_bytes(old)
        return new

    assert after("tangled/other/d.py", b"x = 1\n") == before
    assert after("tangled/other/c.py", b"x = 1\n") != before
    assert after("tangled/part/__init__.py", b"x = 1\n") != before
    assert after("constraints.txt", b"numpy==2.4.6\n") != before
    assert inputs_digest(root, text.replace("A chapter", "Another")) == before
    profile = root / "profile.py"
    profile.write_text("")
    monkeypatch.setattr("loom.run.kernel.files", lambda: (profile,))
    changed = inputs_digest(root, text)
    assert changed != before
    profile.write_text("c = 1\n")
    assert inputs_digest(root, text) != changed
    profile.write_text("")
    assert inputs_digest(root, text) == changed
    newer = SimpleNamespace(major=3, minor=99)
    monkeypatch.setattr(
        "loom.run.inputs.sys", SimpleNamespace(version_info=newer)
    )
    assert inputs_digest(root, text) != changed


@pytest.mark.parametrize("front", FRONTS)
def test_the_stamp_keeps_every_line(root, front):
    text = f"---\n{FRONTS[front]}---\n{cell('import tangled.other.d')}"
    new = stamped(root, text)
    assert len(new.splitlines()) == len(text.splitlines())
    assert new.partition("\n# ")[2] == text.partition("\n# ")[2]
    old = yaml.safe_load(text.split("---\n")[1])
    spec = {**old["kernelspec"], "digest": inputs_digest(root, text)}
    assert yaml.safe_load(new.split("---\n")[1]) == {
        **old,
        "kernelspec": spec,
    }
    positions = [
        line for line in new.splitlines() if line.startswith("tangle")
    ]
    for line in positions:
        assert new.splitlines().index(line) == text.splitlines().index(line)


@pytest.mark.parametrize(
    "text", ["# Prose\n", "---\ntitle: x\n---\n# Prose\n", "---\n---\n", ""]
)
def test_a_page_without_a_kernel_is_left_alone(root, text):
    assert stamped(root, text) == text
