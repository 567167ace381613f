"""What readers install: the package, and of loom only what a downloaded notebook imports."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
USE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tangled.diffusion.elbo, tangled.foundations.classifier
from loom import continues, refuses
from loom.figures import widget
words = {"alt": "seen", "question": "asked", "origin": "live"}
shown = widget("function-plot", stills=[("", {})], **words)._repr_mimebundle_()
assert shown["text/plain"] == "seen"
print(json.dumps({n: m.__file__ for n, m in sys.modules.items()
                  if n.partition(".")[0] in ("loom", "tangled", "yaml")}))
"""


def test_the_package_works_without_the_compiler(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "scripts" not in project["project"]
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in wheel["only-include"]:
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target)
    command = [sys.executable, "-I", "-c", USE, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    files = json.loads(said.stdout)
    assert {"loom.figures", "loom.lesson"} <= set(files)
    assert all(file.startswith(str(tmp_path)) for file in files.values())
