from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.trackers import check_trackers, open_tracker


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "my_run", "seed: 1\nloop:\n  max_steps: 3\n", False)


@pytest.mark.parametrize(
    ("name", "install"), [("trackio", r"pip install 'vidsim\[trackio\]'"), ("wandb", "pip install wandb")]
)
def test_a_tracker_that_is_not_installed_is_refused_with_what_installs_it(
    name: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # Python's own mark for what cannot be imported
    with pytest.raises(UserError, match=f"'{name}' is not installed. Fix: {install}"):
        check_trackers([name])


def test_names_are_checked() -> None:
    check_trackers([])
    check_trackers(["wandb"])
    with pytest.raises(UserError, match=r"field 'trackers': 'mlflow' is not known"):
        check_trackers(["wandb", "mlflow"])
    with pytest.raises(ValueError, match="mlflow"):
        open_tracker("mlflow", None, 0)  # type: ignore[arg-type]


def test_tensorboard_files_hold_the_numbers(run: RunFolder) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = open_tracker("tensorboard", run, 0)
    for step in (1, 2, 3):
        first.log({"loss": step / 4}, step)
    first.close()
    # Resumed from step 2: what was shown after it is purged.
    second = open_tracker("tensorboard", run, 2)
    second.log({"loss": 9.0}, 3)
    second.close()
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.25), (2, 0.5), (3, 9.0)]


def test_wandb_without_a_key_runs_offline_and_says_so(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = open_tracker("wandb", run, 0)
    tracker.log({"loss": 0.5}, 1)
    tracker.close()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("wandb: no key")]
    assert "wandb sync" in line
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(run.run_id)
    assert list(folder.glob("*.wandb"))


def test_trackio_holds_the_numbers(run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    code = (
        "import sys\n"
        "from vidsim.engine.run_folder import RunFolder\n"
        "from vidsim.engine.trackers import open_tracker\n"
        "run = RunFolder.create(sys.argv[1], 'seed: 1', False)\n"
        "tracker = open_tracker('trackio', run, 0)\n"
        "tracker.log({'loss': 0.5}, 1)\n"
        "tracker.close()\n"
    )
    run.close()
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
    assert list((tmp_path / "trackio").glob("vidsim*.db"))
