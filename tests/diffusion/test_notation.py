"""The table of notation against the package: each code name is in the module that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| .+ \| .+ \| .* \| (?P<names>`.+`) \| `(?P<module>[\w.]+)` \|$",
    re.MULTILINE,
)
ROWS = [
    (name, match["module"])
    for match in ROW.finditer((ROOT / "book/notation.md").read_text())
    for name in re.findall(r"`(\w+)`", match["names"])
]


def test_the_table_is_found():
    assert ("alpha_bar", "diffusion.schedule") in ROWS
    assert ("s", "diffusion.forward") in ROWS


@pytest.mark.parametrize(("name", "module"), ROWS)
def test_code_name_is_in_its_module(name, module):
    source = (
        ROOT / "tangled" / (module.replace(".", "/") + ".py")
    ).read_text()
    without_docstrings = re.sub(r'(?s)""".*?"""', "", source)
    assert re.search(rf"\b{name}\b", without_docstrings)
