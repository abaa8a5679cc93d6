"""From what a user names to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from vidsim.common.errors import UserError, short_path
from vidsim.engine.checkpoint import newest_valid, what_is_wrong


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a path means.

    Args:
        path: A checkpoint folder or any folder with `config.json` (taken as it is), or a run folder, whose best
            checkpoint is taken, or its newest valid one where none was called the best.

    Raises:
        UserError: There is no checkpoint, or it is damaged.
    """
    if not path.is_dir():
        raise UserError("no such folder", file=path, fix="name a run folder or a checkpoint folder")
    if (path / "config.json").is_file():
        problem = what_is_wrong(path) if (path / "MANIFEST.json").is_file() else None
        if problem:
            raise UserError(f"is damaged: {problem}", file=path, fix=_advice(path.resolve().parent))
        return path
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    best = checkpoints / "best"
    if best.is_dir():
        problem = what_is_wrong(best.resolve())
        if problem:  # another one would give other numbers without a word
            raise UserError(f"is damaged: {problem}", file=best, fix=_advice(checkpoints))
        return best.resolve()
    newest = newest_valid(checkpoints) if checkpoints.is_dir() else None
    if newest is None:
        raise UserError("holds no checkpoint", file=path, fix="name a run folder or a checkpoint folder")
    return newest


def _advice(checkpoints: Path) -> str:
    """What to do about a damaged checkpoint: the newest whole one beside it, if there is any."""
    others = sorted(checkpoints.glob("step_*"), key=lambda folder: (len(folder.name), folder.name), reverse=True)
    for folder in others:
        if what_is_wrong(folder) is None:
            return f"name another checkpoint of this run, such as {short_path(folder)}"
    return "no other checkpoint of this run is whole: restore one from a copy, or train again"
