from __future__ import annotations

import gc
import subprocess
import sys
from importlib.metadata import version

import pytest

from vidsim.launch.cli import COMMANDS, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for commands in COMMANDS.values():
        for name, line in commands.items():
            assert f"  {name:<19} {line}\n" in text


def test_no_command_prints_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: vidsim COMMAND")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vidsim {version('vidsim')}\n"


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("pretran", "did you mean `vidsim pretrain`?"),
        ("splti", "did you mean `vidsim split`?"),
        ("zzz", "`vidsim --help` lists the commands"),
    ],
)
def test_an_unknown_command_names_the_closest(word: str, fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "--debug"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: '{word}' is not a vidsim command. Fix: {fix}"
    assert gc.isenabled()  # it is paused while a command is imported


def test_help_imports_no_torch() -> None:
    script = (
        "import sys\n"
        "from vidsim.launch.cli import main\n"
        "assert main(['--help']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]"
