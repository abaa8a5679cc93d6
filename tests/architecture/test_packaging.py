from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest


def test_the_packages_list_is_the_folders(project: dict[str, Any], root: Path, rooms: list[str]) -> None:
    # An unlisted sub-package imports fine in editable mode and is silently missing from the wheel.
    folders = {
        "vidsim." + ".".join(path.parent.relative_to(root).parts)
        for room in rooms
        for path in (root / room).rglob("__init__.py")
    }
    assert sorted(folders) == project["tool"]["setuptools"]["packages"]


def test_every_folder_with_code_is_a_package(root: Path, rooms: list[str]) -> None:
    folders = {path.parent for room in rooms for path in (root / room).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_every_room_is_known_to_every_tool(project: dict[str, Any], root: Path, rooms: list[str]) -> None:
    tool = project["tool"]
    assert sorted(tool["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == rooms
    assert sorted(tool["importlinter"]["root_packages"]) == [f"vidsim.{room}" for room in rooms]
    layers = " | ".join(tool["importlinter"]["contracts"][0]["layers"]).split(" | ")
    assert sorted(layers) == [f"vidsim.{room}" for room in rooms]
    for room in rooms:
        assert "py.typed" in tool["setuptools"]["package-data"][f"vidsim.{room}"]
        assert (root / room / "py.typed").is_file()


def test_the_links_for_type_checkers_are_complete(root: Path, rooms: list[str]) -> None:
    links = root / "tests" / "static" / "vidsim"
    assert sorted(path.name for path in links.iterdir()) == rooms
    for room in rooms:
        link = links / room
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == root / room


def test_the_running_code_is_this_checkout(root: Path) -> None:
    # A wheel installed beside a checkout would win, and the tests would test something else.
    import vidsim.common.errors

    assert Path(vidsim.common.errors.__file__).resolve() == root / "common" / "errors.py"


def test_every_direct_dependency_is_pinned(project: dict[str, Any], root: Path) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if [part.operator for part in pin.specifier] == ["=="]
    }
    assert len(versions) == len(pins)
    extras = project["project"]["optional-dependencies"]
    for text in [*project["project"]["dependencies"], *extras["dev"], *extras["extract"]]:
        wanted = Requirement(text)
        version = versions[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"constraints.txt pins {wanted.name} {version}, not in {text}"


@pytest.mark.slow
def test_the_wheel_holds_vidsim_and_nothing_else(
    root: Path, rooms: list[str], project_files: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for path in project_files:
        target = source / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "wheel", "--quiet", *options, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("vidsim-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}

    assert {name.split("/")[0] for name in names} == {
        "vidsim",
        "-".join(wheel.name.split("-")[:2]) + ".dist-info",
    }
    ours = [path.relative_to(root) for path in project_files if path.relative_to(root).parts[0] in rooms]
    wanted = {f"vidsim/{path.as_posix()}" for path in ours if path.name != "README.md"}
    assert {name for name in names if name.startswith("vidsim/")} == wanted
    for folder in ("launch/recipes/pretrain", "launch/recipes/finetune", "launch/accelerate", "launch/slurm"):
        assert any(name.startswith(f"vidsim/{folder}/") for name in names), f"no file in {folder}"
    assert any(name.startswith("vidsim/data/sample/") and not name.endswith(".py") for name in names)
    assert {name.rsplit("/", 1)[-1] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}

    # It runs from the wheel: the modules come from there, not from this checkout.
    installed = tmp_path / "installed"
    options = ["--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run([*pip, "install", "--quiet", *options], check=True, capture_output=True)
    script = (
        f"import sys, json; sys.path.insert(0, {str(installed)!r})\n"
        "import vidsim.launch.cli as cli, vidsim.data.schema as schema\n"
        "code = cli.main(['--version'])\n"
        "print(json.dumps([code, cli.__file__, schema.__file__]))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    code, *origins = json.loads(run.stdout.splitlines()[-1])
    assert code == 0
    assert all(origin.startswith(str(installed)) for origin in origins)
