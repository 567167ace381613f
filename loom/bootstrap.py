"""Prepare a bare machine: Debian packages, then `.venv` with exactly what constraints.txt names.

Run with any Python 3.11 or 3.12, before anything is installed: `python3 -m loom.bootstrap
[apt-file ...]`. A second run finds everything in place and installs nothing.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

VENV = Path(".venv")
STAMP = VENV / "installed"
INPUTS = (Path("constraints.txt"), Path("pyproject.toml"))
# The wheel of the package has no compiler, and so no command: this is for who works on the book.
COMMAND = """\
#!{python}
import sys

try:
    from loom.__main__ import command

    sys.exit(command())
except KeyboardInterrupt:
    sys.exit(130)
"""


def main(apt_files: list[str]) -> int:
    """Install what is missing; return the exit status."""
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"The book needs Python 3.11 or 3.12; this is {version}.", file=sys.stderr)
        return 1
    wanted = [package for file in apt_files for package in packages(Path(file).read_text())]
    missing = [names[0] for names in wanted if not any(map(present, names))]
    if missing and not install_packages(missing):
        return 1
    return 0 if environment_is_current() or install_environment() else 1


def packages(text: str) -> list[list[str]]:
    """Parse a package file: each line names a package, or alternatives separated by bars."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [[name.strip() for name in line.split("|")] for line in lines if line]


def present(package: str) -> bool:
    """Tell whether a Debian package is installed, or what it is wanted for works without it."""
    if package == "python3-venv" and has_ensurepip(sys.executable):
        return True
    if shutil.which("dpkg-query") is None:
        return False
    query = ["dpkg-query", "--show", "--showformat=${Status}", package]
    status = subprocess.run(query, capture_output=True, text=True, check=False)
    return status.stdout == "install ok installed"


def has_ensurepip(python: str) -> bool:
    """Tell whether an interpreter can make a virtual environment; Debian's cannot by itself."""
    code = "import ensurepip, venv"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def install_packages(missing: list[str]) -> bool:
    """Install Debian packages as root or by `sudo -n`; else say what a person has to do."""
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    can_sudo = (
        shutil.which("sudo") is not None
        and not subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode
    )
    if shutil.which("apt-get") is None or not (os.geteuid() == 0 or can_sudo):
        print(f"These Debian packages are missing: {' '.join(missing)}", file=sys.stderr)
        print(f"Install them and start again: sudo {' '.join(install)}", file=sys.stderr)
        return False
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for command in (["apt-get", "update"], install):
        quiet = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", *command]
        if subprocess.run(quiet, check=False).returncode:
            print(f"This failed: {' '.join(command)}", file=sys.stderr)
            return False
    return True


def digest() -> str:
    """A digest of what decides the content of the environment."""
    parts = [*(path.read_bytes() for path in INPUTS), str(Path.cwd()).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def environment_is_current() -> bool:
    """Tell whether `.venv` was completely made from the present constraints, in this folder."""
    return STAMP.is_file() and STAMP.read_text() == digest() and (VENV / "bin/python").exists()


def install_environment() -> bool:
    """Make `.venv`. The stamp is written last, so a killed installation is begun again."""
    python = sys.executable if has_ensurepip(sys.executable) else "/usr/bin/python3"
    pip = [str(VENV / "bin/python"), "-m", "pip"]
    usable = (VENV / "bin/python").exists() and not subprocess.run(
        [*pip, "--version"], capture_output=True, check=False
    ).returncode
    steps = [] if usable else [[python, "-m", "venv", "--clear", str(VENV)]]
    steps.append([*pip, "install", "--editable", ".[book,data,test]"])
    environment = {
        **os.environ,
        "PIP_CONSTRAINT": "constraints.txt",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for step in steps:
        if subprocess.run(step, env=environment, check=False).returncode:
            print(f"This failed: {' '.join(step)}", file=sys.stderr)
            return False
    command = VENV / "bin/loom"
    command.write_text(COMMAND.format(python=(VENV / "bin/python").absolute()))
    command.chmod(0o755)
    STAMP.write_text(digest())
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
