"""Several processes, one job each; an error, Ctrl-C or a killed parent leaves no half file and no orphan."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Protocol, TypeVar

from vidsim.common.errors import UserError
from vidsim.common.progress import progress

Job = TypeVar("Job", contravariant=True)
Result = TypeVar("Result", covariant=True)
Advance = Callable[[int], None]
"""Told how much more is done; raises where the run is over, so that the job cleans up and ends."""

_POLL_SECONDS = 0.3


class Work(Protocol[Job, Result]):
    """A function at the top of a module, or a `functools.partial` of one: it goes to other processes."""

    def __call__(self, job: Job, /, *, advance: Advance | None = None, show: bool = False) -> Result:
        """Do a job; call `advance` now and then, or show its own progress."""
        ...


@dataclass(frozen=True)
class _Shared:
    """What parent and workers share."""

    stop: Event
    count: Synchronized[int]


class _StoppedError(Exception):
    """The run ends for another reason: leave, removing what is half done."""


_shared: _Shared | None = None
_busy = threading.Lock()


def run_jobs(
    work: Work[Job, Result],
    jobs: Sequence[Job],
    num_processes: int,
    *,
    total: int,
    desc: str,
    unit: str,
    scale: int = 1,
) -> list[Result]:
    """Do each job, in this process if there is one job or process, otherwise in spawned ones.

    Args:
        work: What to do.
        jobs: What to do it with.
        num_processes: Jobs done at the same time.
        total: Sum of what the jobs tell `advance`.
        desc: What is being done.
        unit: What `scale` of that sum is called.
        scale: Show so many as one.

    Returns:
        The results, in the order of the jobs.

    Raises:
        UserError: A worker died. Whatever a job raises comes through, after the other jobs have cleaned up.
    """
    num_workers = min(num_processes, len(jobs))
    if num_workers <= 1:
        return [work(job, show=True) for job in jobs]
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context.Event(), context.Value("q", 0))
    with ProcessPoolExecutor(num_workers, context, _start_worker, (shared,)) as pool:
        with _no_ctrl_c():
            futures = [pool.submit(_do, work, job) for job in jobs]
        steps = _steps(futures, shared, scale)
        try:
            for _ in progress(steps, total=total // scale, desc=desc, unit=unit):
                pass
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps for lack of memory", fix="use a smaller --num_processes"
            ) from None
        finally:
            shared.stop.set()
            pool.shutdown(cancel_futures=True)


def _steps(futures: Sequence[Future[Result]], shared: _Shared, scale: int) -> Iterator[None]:
    """One item for each `scale` that is done, until all jobs are or one fails."""
    seen = 0
    pending: set[Future[Result]] = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()  # raises what the job raised
        now = shared.count.value // scale
        yield from (None for _ in range(now - seen))
        seen = now


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Put Ctrl-C off; processes started in here never get it.

    A terminal sends it to all; the parent tells the workers by the event, so that they can clean up.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(shared: _Shared) -> None:
    global _shared
    _shared = shared
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this worker when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    assert _shared is not None
    _shared.stop.set()
    with _busy:  # the job under way has cleaned up
        os._exit(1)


def _do(work: Work[Job, Result], job: Job) -> Result:
    assert _shared is not None
    shared = _shared

    def advance(amount: int) -> None:
        if shared.stop.is_set():
            raise _StoppedError
        with shared.count.get_lock():
            shared.count.value += amount

    with _busy:
        return work(job, advance=advance)
