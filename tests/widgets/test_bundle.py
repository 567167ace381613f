"""The script in the repository is the one that its sources make, and it is small."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDGETS, STATIC = ROOT / "widgets", ROOT / "book" / "_static"
BUILT = ("widgets.js", "widgets.css")


@pytest.mark.skipif(
    not (shutil.which("node") and (WIDGETS / "node_modules").is_dir()),
    reason="needs Node and `npm ci` in widgets/",
)
def test_the_script_is_what_its_sources_make(tmp_path):
    command = ["node", "build.mjs", str(tmp_path)]
    subprocess.run(command, cwd=WIDGETS, check=True)
    for name in BUILT:
        fresh = (tmp_path / name).read_bytes()
        assert fresh == (STATIC / name).read_bytes(), f"{name}: npm run build"


def test_the_script_is_small():
    sizes = [len(gzip.compress((STATIC / n).read_bytes(), 9)) for n in BUILT]
    assert sum(sizes) < 40_000


def test_versions_are_exact_and_the_lock_names_no_place():
    package = json.loads((WIDGETS / "package.json").read_text())
    lock = json.loads((WIDGETS / "package-lock.json").read_text())
    for name, version in package["devDependencies"].items():
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"]
    assert all("resolved" not in entry for entry in lock["packages"].values())
