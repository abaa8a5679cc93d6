"""Checks of settings that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidsim.common.errors import UserError


def require_at_least(values: Mapping[str, Any], least: Mapping[str, int], prefix: str = "") -> None:
    """Refuse settings that are too small; None passes.

    Args:
        values: Settings by name, such as `vars(config)`.
        least: Name of each setting that is looked at, and the least it may be.
        prefix: Put before the name, such as `loop.` or `--`.

    Raises:
        UserError: Names the first that is too small.
    """
    for name, minimum in least.items():
        value = values[name]
        if value is not None and value < minimum:
            raise UserError(f"{value} is below {minimum}", field=f"{prefix}{name}", fix=f"set {minimum} or more")
