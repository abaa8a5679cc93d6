"""Ctrl-C and SIGTERM as a wish to stop after the current step."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stop_flag() -> Iterator[list[bool]]:
    """A flag that the first Ctrl-C or SIGTERM sets; the second Ctrl-C interrupts at once."""
    flag: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.append(True)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
