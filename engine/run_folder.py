"""The folder of one run: its configuration, what it ran on, its metrics and its checkpoints."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json, write_json
from vidsim.engine.installed import package_path, version_of

CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS, REPORT = (
    "config.yaml",
    "env.json",
    "metrics.jsonl",
    "checkpoints",
    "report.html",
)
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "safetensors", "vidsim")
# What may change when a run is resumed: nothing of it changes a weight. (With `eval_every_steps: null` another
# `max_steps` moves the evaluation, and with it which checkpoint is called the best.)
RESUMABLE_CHANGES = frozenset(
    {
        "resume",
        "dry_run",
        "trackers",
        "output_dir",
        "loop.max_steps",
        "loop.num_workers",
        "loop.keep_checkpoints",
        "loop.checkpoint_every_steps",
    }
)


class RunFolder:
    """A run folder that this process owns; `create` makes or reopens one.

    Attributes:
        path: The folder.
        run_id: Random name that stays the same when the run is resumed.
        config_yaml: Resolved configuration.
        is_resumed: Whether there is a checkpoint to go on from (known on the main process only).
    """

    def __init__(self, path: Path, config_yaml: str) -> None:
        """Use `create`."""
        self.path = path
        self.config_yaml = config_yaml
        self.run_id = ""
        self.is_resumed = False
        self._lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """The metrics, one JSON object a line."""
        return self.path / METRICS

    @classmethod
    def create(
        cls,
        path: str | Path,
        config_yaml: str,
        resume: bool,
        *,
        world_size: int = 1,
        device: str = "cpu",
        is_main_process: bool = True,
    ) -> RunFolder:
        """Make the folder, or go on in one that holds checkpoints of the same run.

        A run that died before its first checkpoint has nothing to lose: it is started anew, with the same
        configuration or with one that was mended.

        Args:
            path: The folder.
            config_yaml: Resolved configuration, as YAML.
            resume: Whether going on is wanted; an empty folder is then simply started.
            world_size: Number of processes; steps are counted in their common batches.
            device: Device, for the record.
            is_main_process: False on the other ranks, which touch nothing.

        Raises:
            UserError: The folder holds a run and `resume` is False, or the configurations differ (names the
                keys) or the numbers of processes do, or another run is writing there.
        """
        run = cls(Path(path), config_yaml)
        if not is_main_process:
            return run
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot be made ({error.strerror})",
                file=path,
                field="output_dir",
                fix="choose another folder",
            ) from error
        run._take_lock()
        try:
            run._open(resume, world_size, device)
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Let another run have the folder; also happens when the process ends, however it ends."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        """The folder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the folder."""
        self.close()

    def _open(self, resume: bool, world_size: int, device: str) -> None:
        from vidsim.engine.checkpoint import tidy  # needs torch, which `vidsim report` does not

        config_file, environment_file = self.path / CONFIG, self.path / ENVIRONMENT
        tidy(self.checkpoints)
        self.is_resumed = self.checkpoints.is_dir() and any(self.checkpoints.glob("step_*"))
        earlier: list[dict[str, Any]] = []
        if self.is_resumed:
            if not resume:
                raise UserError(
                    "already holds a run with checkpoints",
                    file=self.path,
                    field="output_dir",
                    fix="add --resume true to go on with it, or choose another --output_dir",
                )
            _check_same(config_file, self.config_yaml)
            previous = read_json(environment_file)
            _check_world_size(environment_file, previous.get("world_size"), world_size)
            earlier = [*previous.pop("earlier_starts", []), previous]
            self.run_id = previous.pop("run_id", "")
        else:
            self.metrics.unlink(missing_ok=True)
        self.run_id = self.run_id or secrets.token_hex(4)
        with atomic_path(config_file) as temporary:
            temporary.write_text(self.config_yaml, encoding="utf-8")
        environment = {
            "run_id": self.run_id,
            **describe_environment(world_size, device),
            "earlier_starts": earlier,
        }
        write_json(environment_file, environment)

    def _take_lock(self) -> None:
        file = self.path / "run.lock"
        lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115  (held until the run ends)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise UserError(
                f"another run is writing here ({owner})",
                file=self.path,
                field="output_dir",
                fix="wait for it, stop it, or choose another --output_dir",
            ) from None
        except OSError as error:
            # A network file system without locks: better no guard than no training.
            print(
                f"{file}: cannot be locked ({error.strerror}); make sure that no other run writes here",
                file=sys.stderr,
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        self._lock = lock
        # The lock belongs to the open file, which forked loader workers share; they may outlive a killed run.
        os.register_at_fork(after_in_child=lambda: lock.close())


def differences(old: Any, new: Any) -> list[str]:
    """Dotted keys at which two nested configurations differ, as `loop.max_steps: 10 -> 20`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    missing = object()
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, missing) != after.get(key, missing)
    ]


def describe_environment(world_size: int, device: str) -> dict[str, Any]:
    """What repeating the run elsewhere needs: versions, commit, package path, processes, device, command."""
    return {
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "host": socket.gethostname(),
        "world_size": world_size,
        "device": device,
        "python": sys.version.split()[0],
        "versions": {package: version_of(package) for package in _PACKAGES},
        "package_path": str(package_path()),
        "git_commit": _git_commit(),
    }


def _check_same(config_file: Path, config_yaml: str) -> None:
    try:
        old = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read ({error})", file=config_file) from error
    changed = [
        line for line in differences(old, yaml.safe_load(config_yaml)) if line.split(":")[0] not in RESUMABLE_CHANGES
    ]
    if changed:
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise UserError(
            f"the run was started with another configuration; {'; '.join(changed[:8])}{more}",
            file=config_file,
            fix="resume with the old values, or start in another --output_dir",
        )


def _check_world_size(file: Path, before: object, now: int) -> None:
    # Steps, rows and the learning rate would all be counted in batches of another size.
    if before != now:
        raise UserError(
            f"the run was started with {before} processes, now there are {now}",
            file=file,
            field="world_size",
            fix="start as many as before, or choose another --output_dir",
        )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [
            item for key, child in value.items() for item in _flat(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)]


def _git_commit() -> str | None:
    """Commit of the running code, with `+changes` if files differ from it; None outside of its repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package_path()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # An installed package may lie inside somebody else's repository, whose commit would say nothing.
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    return None
