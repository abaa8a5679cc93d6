from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vidsim.launch.cli import COMMANDS, dispatch

NAMES = [name for commands in COMMANDS.values() for name in commands]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = dispatch([name, "--help"])
    except SystemExit as ending:  # how argparse ends its help
        code = ending.code
    assert code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: vidsim {name}")
    assert f"\n  vidsim {name} " in text or f"example: vidsim {name} " in text


def test_the_list_is_what_dispatch_knows(root: Path) -> None:
    tree = ast.parse((root / "launch" / "cli.py").read_text(encoding="utf-8"))
    cases = [node.pattern for node in ast.walk(tree) if isinstance(node, ast.match_case)]
    known = [
        pattern.value.value
        for pattern in cases
        if isinstance(pattern, ast.MatchValue)
        and isinstance(pattern.value, ast.Constant)
        and not str(pattern.value.value).startswith("-")
    ]
    assert sorted(known) == sorted(NAMES)


def modules_of(root: Path, room: str) -> list[str]:
    return [f"vidsim.{room}.{path.stem}" for path in sorted((root / room).glob("[a-z]*.py"))]


def test_what_comes_after_the_embeddings_file_needs_no_torch(root: Path) -> None:
    modules = [
        "vidsim.launch.cli",
        "vidsim.engine.report_page",
        *modules_of(root, "ensemble"),
        *modules_of(root, "retrieval"),
    ]
    assert len(modules) > 3
    script = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    script += "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])\n"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
