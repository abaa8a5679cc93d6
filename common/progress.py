"""Progress on a terminal as a bar, in a log as a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_LINE_EVERY_SECONDS = 30.0


def progress(
    iterable: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it", enabled: bool = True
) -> Iterator[T]:
    """Pass `iterable` on, showing how far it is on standard error.

    Args:
        iterable: What to walk through.
        total: How many items are expected; taken from `len` where there is one.
        desc: What is being done.
        unit: What one item is called.
        enabled: False on every rank but the first.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if not enabled:
        yield from iterable
        return
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=desc, unit=unit, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for count, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_EVERY_SECONDS:
            last = now
            of_total = f"/{total:,}" if total else ""
            print(f"{desc}: {count:,}{of_total} {unit} ({count / (now - start):,.1f}/s)", file=sys.stderr, flush=True)
