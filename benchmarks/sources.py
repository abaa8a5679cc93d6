"""Whether the folder that a benchmark was given is the one it needs."""

from __future__ import annotations

from pathlib import Path

from vidsim.common.errors import UserError


def require_files(folder: Path, *names: str) -> None:
    """Refuse a folder that lacks a file.

    Raises:
        UserError: Names the first that is missing, and all that are needed.
    """
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{name} is missing", file=folder, fix=f"name the folder that holds {', '.join(names)}")
