from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidsim.data.arrow import open_videos
from vidsim.data.synthetic import GeneratorConfig, generate

SCRIPT = """
import resource, sys
from vidsim.data.convert.aiac import main
if __name__ == "__main__":
    main(sys.argv[1:])
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make(out: Path, num_videos: int, num_files: int, frame_dim: int) -> Path:
    generate(
        out,
        GeneratorConfig(
            num_videos=num_videos,
            num_pairs=0,
            num_test_pairs=0,
            num_files=num_files,
            frame_dim=frame_dim,
            num_tags=20,
        ),
    )
    return out


def start(script: Path, source: Path, out: Path, frame_dim: int, num_processes: int) -> subprocess.Popen[str]:
    script.write_text(SCRIPT)
    argv = [str(source), "--out", str(out), "--frame_dim", str(frame_dim), "--num_processes", str(num_processes)]
    return subprocess.Popen(
        [sys.executable, str(script), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_half_file(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + 60
    while not list((out / "pointwise").glob(".data-*")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_until_session_is_empty(session: int) -> None:
    """No process of the session is left, whoever its parent is now."""
    deadline = time.monotonic() + 30
    while True:
        alive = []
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdecimal() else []
            except OSError:
                continue
            if fields and int(fields[3]) == session and fields[0] != "Z":
                alive.append(entry.name)
        if not alive:
            return
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made_up") / "source", 900, 3, 256)


@pytest.mark.multi_process
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interruption_leaves_no_half_file_and_no_process(source: Path, tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "out"
    process = start(tmp_path / "run.py", source, out, 256, num_processes=2)
    wait_for_half_file(process, out)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: to parent and workers
    else:
        process.kill()  # the parent only
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    wait_until_session_is_empty(process.pid)
    assert errors.count("Traceback") <= 1  # the parent's own, which the `vidsim` command turns into one line
    assert not list(out.rglob(".*tmp"))
    assert not (out / "pointwise" / "manifest.json").exists()
    again = start(tmp_path / "run.py", source, out, 256, num_processes=2)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert len(open_videos(out / "pointwise")) == 900


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    peaks = []
    for num_videos in (300, 3000):
        source = make(tmp_path / f"source{num_videos}", num_videos, 1, 1536)
        process = start(tmp_path / "run.py", source, tmp_path / f"out{num_videos}", 1536, num_processes=1)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        peaks.append(int(output.split()[-1]))
    # 160 MB of frames: one batch of at most 64 MiB may be in memory, not all of them.
    assert peaks[1] - peaks[0] < 130 * 1024  # KiB
