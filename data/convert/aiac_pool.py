"""Convert several files at once, so that an error, Ctrl-C or a killed parent leaves no half file and no orphan."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

from vidsim.common.errors import UserError
from vidsim.common.progress import progress
from vidsim.data.convert.aiac_shard import ShardJob, ShardResult, convert_shard

_POLL_SECONDS = 0.3
_MIB = 2**20


@dataclass(frozen=True)
class _Shared:
    """What parent and workers share."""

    stop: Event
    num_bytes: Synchronized[int]


class _StoppedError(Exception):
    """The run ends for another reason: leave, removing what is half done."""


_shared: _Shared | None = None


def convert_shards(jobs: Sequence[ShardJob], num_processes: int, desc: str) -> list[ShardResult]:
    """Convert each file; results in the order of the jobs.

    Raises:
        UserError: The first bad file found; the other workers stop and clean up first.
    """
    if min(num_processes, len(jobs)) <= 1:
        return [convert_shard(job, show=True) for job in jobs]
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context.Event(), context.Value("q", 0))
    num_workers = min(num_processes, len(jobs))
    with ProcessPoolExecutor(num_workers, context, _start_worker, (shared,)) as pool:
        futures = [pool.submit(_convert_in_worker, job) for job in jobs]
        total = sum(job.source.stat().st_size for job in jobs) // _MIB
        try:
            for _ in progress(_mebibytes(futures, shared), total=total, desc=desc, unit="MiB"):
                pass
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps for lack of memory", fix="use a smaller --num_processes"
            ) from None
        finally:
            shared.stop.set()
            pool.shutdown(cancel_futures=True)


def _mebibytes(futures: Sequence[Future[ShardResult]], shared: _Shared) -> Iterator[None]:
    """One item for each MiB that was read, until all files are done or one fails."""
    seen = 0
    pending: set[Future[ShardResult]] = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()  # raises what the worker raised
        now = shared.num_bytes.value // _MIB
        yield from (None for _ in range(now - seen))
        seen = now


def _start_worker(shared: _Shared) -> None:
    global _shared
    _shared = shared
    # A terminal sends Ctrl-C to all; the parent tells the workers by the event, so that they can clean up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _convert_in_worker(job: ShardJob) -> ShardResult:
    assert _shared is not None
    shared, parent = _shared, multiprocessing.parent_process()

    def advance(num_bytes: int) -> None:
        if shared.stop.is_set() or (parent is not None and not parent.is_alive()):
            raise _StoppedError
        with shared.num_bytes.get_lock():
            shared.num_bytes.value += num_bytes

    return convert_shard(job, advance=advance)
