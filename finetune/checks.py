"""Checks of settings that several tasks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vidsim.common.errors import UserError
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig


def check_epochs(num_epochs: float) -> None:
    """Refuse what is no number of passes.

    Raises:
        UserError: It is 0, negative, infinite or NaN.
    """
    if not 0 < num_epochs < math.inf:
        raise UserError(f"{num_epochs} is not above 0 and finite", field="num_epochs", fix="set 1 or more")


def refuse_unread(settings: object, defaults: object, names: Sequence[str], reader: str, prefix: str = "") -> None:
    """Refuse settings that were changed, though nothing would read them.

    Args:
        settings: A configuration.
        defaults: The same with nothing changed.
        names: Its fields that are not read.
        reader: Who does not read them.
        prefix: Put before a name, such as `loop.`.

    Raises:
        UserError: Names the first that was changed.
    """
    for name in names:
        value = getattr(settings, name)
        if value != getattr(defaults, name):
            raise UserError(f"{value} is not read by {reader}", field=f"{prefix}{name}", fix="leave it out")


def refuse_encoder_settings(loop: LoopConfig, optimizer: OptimizerConfig, reader: str) -> None:
    """Refuse what only the layers of an encoder can follow.

    Raises:
        UserError: Names the first setting that was changed.
    """
    refuse_unread(loop, LoopConfig(), ("compile", "gradient_checkpointing"), reader, "loop.")
    refuse_unread(optimizer, OptimizerConfig(), ("layer_decay", "head_parameters"), reader, "optimizer.")
