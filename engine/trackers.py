"""Dashboards beside metrics.jsonl, on request: wandb, tensorboard, trackio."""

from __future__ import annotations

import importlib.util
import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import yaml

from vidsim.common.errors import UserError
from vidsim.engine.run_folder import RunFolder

_PROJECT = "vidsim"
# Name of the tracker and what installs it.
_INSTALL = {
    "wandb": "pip install wandb",
    "tensorboard": "pip install 'vidsim[tensorboard]'",
    "trackio": "pip install 'vidsim[trackio]'",
}


class Tracker(Protocol):
    """Where metrics are shown."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show metrics of a step."""

    def close(self) -> None:
        """Flush and end."""


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that every tracker is known and installed, before a device is touched.

    Raises:
        UserError: Names the tracker and what installs it. (accelerate only warns, and then logs nothing.)
    """
    for name in names:
        if name not in _INSTALL:
            raise UserError(f"'{name}' is not known", field="trackers", fix=f"use some of {', '.join(_INSTALL)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"'{name}' is not installed", field="trackers", fix=_INSTALL[name])


def open_tracker(name: str, run: RunFolder, step: int) -> Tracker:
    """Start one tracker.

    Args:
        name: Checked before by `check_trackers`.
        run: Gives name, id and configuration.
        step: Step from which the run goes on; what a tracker shows after it is not valid any more.
    """
    match name:
        case "wandb":
            return _Wandb(run)
        case "tensorboard":
            return _Tensorboard(run, step)
        case "trackio":
            return _Trackio(run)
        case _:
            raise ValueError(f"unknown tracker {name}")


class _Wandb:
    def __init__(self, run: RunFolder) -> None:
        import wandb

        mode: Literal["offline"] | None = None
        if not _has_wandb_key():
            mode = "offline"
            line = f"wandb: no key found, so it runs offline; later: wandb sync {run.path}/wandb/offline-run-*"
            print(line, file=sys.stderr, flush=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=run.run_id,
            name=run.path.name,
            dir=run.path,
            config=yaml.safe_load(run.config_yaml),
            resume="allow" if mode is None else None,  # offline runs cannot be resumed, only added to
            mode=mode,
            settings=wandb.Settings(silent=mode is not None),  # the line above says it all
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _Tensorboard:
    def __init__(self, run: RunFolder, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that a run that is killed has shown everything

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, run: RunFolder) -> None:
        import trackio

        self._trackio = trackio
        # Runs of the same folder name would be one run to trackio, hence the id.
        trackio.init(
            project=_PROJECT,
            name=f"{run.path.name}-{run.run_id}",
            config=yaml.safe_load(run.config_yaml),
            resume="allow",
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self._trackio.finish()


def _has_wandb_key() -> bool:
    """Whether wandb can log in without asking, or was told by the user how to run."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
