"""What is installed; needs no torch, so that `vidsim report` starts at once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_path() -> Path:
    """Folder that holds the rooms of the vidsim that is running."""
    return Path(__file__).resolve().parent.parent


def version_of(package: str) -> str | None:
    """Installed version of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
