"""The project's own files, for the tests that read them."""

from __future__ import annotations

import ast
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def rooms() -> list[str]:
    """The top-level folders that hold code."""
    return sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file that a commit would hold, links left out."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # A source archive has no git; then every file that is not an environment, a cache or a build counts.
    names = [name for name in listing.stdout.split("\0") if name] if listing.returncode == 0 else _walk()
    paths = [ROOT / name for name in names]
    return sorted({path for path in paths if path.is_file() and not path.is_symlink()})


def _walk() -> list[str]:
    skipped = {"build", "dist", "runs", "demo", "__pycache__"}
    found = []
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in skipped and not name.endswith(".egg-info") and (not name.startswith(".") or name == ".ci")
        ]
        found += [str(Path(folder, name).relative_to(ROOT)) for name in files]
    return found


@pytest.fixture(scope="session")
def python_files(project_files: list[Path]) -> list[Path]:
    return [path for path in project_files if path.suffix == ".py"]


@pytest.fixture(scope="session")
def code(python_files: list[Path], rooms: list[str]) -> dict[str, ast.Module]:
    """The parsed files of the rooms, by their path from the root; tests are not among them."""
    trees = {}
    for path in python_files:
        name = path.relative_to(ROOT).as_posix()
        if name.split("/")[0] in rooms:
            trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=name)
    return trees
