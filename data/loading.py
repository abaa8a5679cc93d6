"""The micro-batches of one rank, from any step, prepared by threads.

Threads, not processes: tokenising, copying features and reading files release Python's lock, so that threads keep up,
and a batch stays where it was made. To hand one over from another process costs more than to make it.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import Dataset

from vidsim.data.collators import Batch
from vidsim.data.samplers import RowKey

_AHEAD = 2  # batches prepared or waiting, for each worker


def step_batches(
    rows: Dataset[dict[str, Any]],
    sampler: Iterable[Sequence[RowKey]],
    collator: Callable[[Sequence[dict[str, Any]]], Batch],
    *,
    num_workers: int,
) -> Iterator[Batch]:
    """Load what a sampler asks for, in its order.

    Args:
        rows: Asked by (epoch, row), from several threads; `__getitems__`, where there is one, for a whole batch.
        sampler: Of this rank, from the first step that is wanted.
        collator: Rows to a batch. Each worker has a copy: tokenizers keep the settings of a call in themselves.
        num_workers: Threads that prepare batches ahead; 0: each batch is made when it is asked for.
    """

    def load(keys: Sequence[RowKey], collate: Callable[[Sequence[dict[str, Any]]], Batch]) -> Batch:
        read = getattr(rows, "__getitems__", None)
        return _pinned(collate(read(keys) if read else [rows[key] for key in keys]))

    if num_workers == 0:
        yield from (load(keys, collator) for keys in sampler)
        return
    own = threading.local()
    copies = [copy.deepcopy(collator) for _ in range(num_workers)]

    def begin() -> None:
        own.collator = copies.pop()

    def work(keys: Sequence[RowKey]) -> Batch:
        return load(keys, own.collator)

    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="batches", initializer=begin)
    waiting: deque[Future[Batch]] = deque()
    try:
        for keys in sampler:
            waiting.append(pool.submit(work, keys))
            if len(waiting) > _AHEAD * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pinned(batch: Batch) -> Batch:
    """A batch in memory that a GPU can fetch while it computes."""
    if not torch.cuda.is_available():
        return batch
    return {key: value.pin_memory() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
