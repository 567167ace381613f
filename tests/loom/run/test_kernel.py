"""The kernel's hook, figures and environment."""

import ast
import os
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from nbclient import NotebookClient

from loom.run.execute import ANSI
from loom.run.kernel import environment, files
from loom.run.kernel.checks import Checks, find_tests

ROOT = Path(__file__).parents[3]
FIGURE = """\
import matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([1, 3, 2], label="a line")
axes.set_title("$t=250$", math_fontfamily="cm")
axes.legend()
plt.show()"""
CELLS = {
    "figure": FIGURE,
    "again": FIGURE,
    "checks": """\
import functools
def test_b(): print("b runs")
@functools.lru_cache
def test_a(): print("a runs")
print("the cell's own code")""",
    "display": "def test_c(): pass\n40 + 2",
    "nothing": "def best_a(): raise ValueError",
    "failing": "def test_d():\n    one = 1\n    assert one == 2",
    "variables": """\
import os
print(*(os.environ[name] for name in
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED",
         "HF_HUB_OFFLINE")))
import tqdm.auto
for _ in tqdm.auto.tqdm(range(3)): pass
import here
from loom import continues
print(here.__file__, continues.__name__)""",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of each cell, all run by one kernel in a chapter's folder."""
    root = tmp_path_factory.mktemp("kernel")
    (root / "book").mkdir()
    (root / "here.py").touch()
    v4 = nbformat.v4
    tags = {"metadata": {"tags": ["raises-exception"]}}
    notebook = v4.new_notebook(
        cells=[v4.new_code_cell(source, **tags) for source in CELLS.values()]
    )
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        os.environ.update(environment(root))
        NotebookClient(
            notebook, resources={"metadata": {"path": str(root / "book")}}
        ).execute()
    assert not (ROOT / "loom/kernel/profile_default/pid").exists()
    return dict(zip(CELLS, (c.outputs for c in notebook.cells), strict=True))


def printed(cell):
    return "".join(o.text for o in cell if o.output_type == "stream")


def test_the_tests_of_a_cell_are_called_after_its_own_code(outputs):
    assert printed(outputs["checks"]) == (
        "the cell's own code\nb runs\na runs\npassed: test_b, test_a\n"
    )


def test_a_last_expression_is_still_displayed(outputs):
    shown = [o for o in outputs["display"] if o.output_type != "stream"]
    assert [o.data["text/plain"] for o in shown] == ["42"]
    assert printed(outputs["display"]) == "passed: test_c\n"


def test_a_cell_without_tests_is_left_alone(outputs):
    assert outputs["nothing"] == []
    tree = ast.parse("x = 1\nx")
    before = ast.dump(tree, include_attributes=True)
    assert ast.dump(Checks().visit(tree), include_attributes=True) == before


def test_a_failing_test_fails_its_cell_with_its_own_traceback(outputs):
    (error,) = outputs["failing"]
    assert error.ename == "AssertionError"
    assert "passed" not in printed(outputs["failing"])
    trace = ANSI.sub("", "\n".join(error.traceback))
    assert "Cell In[6], line 3, in test_d()" in trace


def test_which_functions_are_tests():
    tree = ast.parse("""
def test_a(): raise ValueError
def test_b(x): pass
def test_c(x=1): pass
def test_d(*rest): pass
async def test_e(): pass
def helper(): pass
class A:
    def test_f(): pass
if True:
    def test_g(): pass
def test_h(): pass
def test_a(): pass
""")
    found = find_tests(tree)
    assert [test.name for test in found] == ["test_h", "test_a"]
    assert found[1].lineno == 13


def test_figures_are_vectors_for_both_editions_and_always_the_same(outputs):
    (figure,), (again,) = outputs["figure"], outputs["again"]
    assert {"image/svg+xml", "application/pdf"} <= set(figure.data)
    assert "image/png" not in figure.data
    assert figure.data == again.data
    svg = figure.data["image/svg+xml"]
    assert "2026-01-01" in svg
    assert "<text" not in svg
    assert "fill: #ffffff" not in svg


def test_variables_and_imports(outputs):
    assert {o.name for o in outputs["variables"]} == {"stdout"}
    lines = printed(outputs["variables"]).splitlines()
    assert lines[0] == "1 1 0 1"
    assert lines[1].endswith("here.py continues")


def test_environment_is_the_same_when_asked_again(tmp_path):
    with mock.patch.dict(os.environ, {"PYTHONPATH": "/elsewhere"}):
        first = environment(tmp_path)
        assert first["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"
        os.environ.update(first)
        assert environment(tmp_path) == first
    profile = Path(first["IPYTHONDIR"], "profile_default")
    copied = profile / "ipython_kernel_config.py"
    assert [copied] == list(profile.iterdir())
    copied.write_text("# an older loom's")
    environment(tmp_path)
    assert copied.read_bytes() == files()[-1].read_bytes()
