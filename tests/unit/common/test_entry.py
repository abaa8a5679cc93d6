from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError


def test_the_exit_code_is_the_commands_and_debug_is_taken_out() -> None:
    seen: list[list[str] | None] = []

    def main(argv: list[str] | None) -> int:
        seen.append(argv)
        return 7

    assert run_entry(main, ["a", "--debug", "b", "--", "--debug"]) == 7
    assert seen == [["a", "b", "--", "--debug"]]


def test_the_arguments_of_the_process_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", "a.yaml"])
    seen: list[list[str] | None] = []

    def main(argv: list[str] | None) -> int:
        seen.append(argv)
        return 0

    assert run_entry(main) == 0
    assert seen == [["--config", "a.yaml"]]


def refuse(argv: list[str] | None) -> int:
    raise UserError("is not a\nnumber", file="pairs.tsv", record=3, field="score", fix="mend the line")


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_entry(refuse, []) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: pairs.tsv, line 3, field 'score': is not a number. Fix: mend the line\n"


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_entry(refuse, ["--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("error: pairs.tsv, line 3")


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str] | None) -> int:
        raise KeyboardInterrupt

    assert run_entry(main, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_mistakes_keep_their_traceback() -> None:
    def main(argv: list[str] | None) -> int:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        run_entry(main, [])


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = (
        "import sys\n"
        "from vidsim.common.entry import run_entry\n"
        "def main(argv):\n"
        "    for number in range(200_000): print(number)\n"
        "    return 0\n"
        "sys.exit(run_entry(main))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stderr is not None
    assert writer.stdout.readline() == "0\n"
    writer.stdout.close()
    assert writer.stderr.read() == ""
    writer.stderr.close()
    assert writer.wait(timeout=30) == 141


def test_an_error_after_the_reader_went_away_is_still_one_line() -> None:
    script = (
        "import sys\n"
        "from vidsim.common.entry import run_entry\n"
        "from vidsim.common.errors import UserError\n"
        "def main(argv):\n"
        "    print('first', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print('second')\n"
        "    raise UserError('is wrong', file='a.tsv')\n"
        "sys.exit(run_entry(main))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    writer = subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "first\n"
    writer.stdout.close()
    writer.stdout = None
    assert writer.communicate("go on\n", timeout=60)[1] == "error: a.tsv: is wrong\n"
    assert writer.returncode == 2


def test_one_of_several_processes_leaves_at_once_with_all_that_was_printed() -> None:
    script = (
        "import atexit, sys\n"
        "from vidsim.common.entry import leave\n"
        "atexit.register(print, 'taken apart')\n"
        "print('out')\n"
        "print('err', file=sys.stderr)\n"
        "leave(7)\n"
    )
    for rank, printed in ((None, "out\ntaken apart\n"), ("0", "out\n")):
        environment = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
        environment |= {} if rank is None else {"LOCAL_RANK": rank}
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert (ended.returncode, ended.stdout, ended.stderr) == (7, printed, "err\n")
