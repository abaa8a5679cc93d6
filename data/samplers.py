"""The order of rows as a pure function of (seed, epoch), cut into steps by arithmetic.

The rows of all epochs form one endless stream; step `s` takes the stream's rows [s·G, (s+1)·G), G being the global
batch size. Nothing is dropped at the end of an epoch, any step can be reached without walking there, and the rows
of a step do not depend on how they are split over ranks and micro-batches.

Steps may be cut by tokens instead of rows. Every epoch has the same number of tokens whatever its order, so the place
of a token in the endless stream is arithmetic as well: step `s` takes the rows whose first token is one of
[s·G, (s+1)·G), G now being tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from vidsim.common.errors import UserError

RowKey = tuple[int, int]
"""(epoch, row): what a data set is asked for, so that masks can follow the epoch in any worker."""


class Stream(Protocol):
    """An endless stream of rows, counted in rows or in tokens.

    Attributes:
        epoch_size: What an epoch has of them.
    """

    epoch_size: int

    def keys(self, start: int, count: int) -> list[RowKey]:
        """The rows of the positions [start, start + count)."""


class RowOrder:
    """The endless stream of rows of one training stage.

    Args:
        groups: Row numbers of each data set, int64 [n].
        order: `together` shuffles all groups as one; `sequential` goes through the groups one after another in
            every epoch, each shuffled (the 2021 winner's job 5).
        seed: Seed of the run.
        first_epoch: Number of the first epoch in the keys: a later stage does not see the masks of an earlier one.
    """

    def __init__(
        self,
        groups: Sequence[np.ndarray],
        *,
        order: Literal["together", "sequential"] = "together",
        seed: int,
        first_epoch: int = 0,
    ) -> None:
        """Join the groups where they are shuffled together."""
        self.first_epoch = first_epoch
        self.groups = [np.concatenate(list(groups))] if order == "together" else list(groups)
        self.seed = seed
        self.epoch_size = sum(len(group) for group in self.groups)
        self._cache: dict[int, np.ndarray] = {}

    def epoch(self, epoch: int) -> np.ndarray:
        """Row numbers of one epoch in their order, int64 [num_rows]."""
        if epoch not in self._cache:
            generator = np.random.default_rng([self.seed, epoch])
            self._cache = {key: value for key, value in self._cache.items() if key == epoch - 1}
            self._cache[epoch] = np.concatenate([generator.permutation(group) for group in self.groups])
        return self._cache[epoch]

    def keys(self, start: int, count: int) -> list[RowKey]:
        """Stream positions [start, start + count) as (epoch, row)."""
        result: list[RowKey] = []
        for epoch, first, stop in _epochs(start, count, self.epoch_size):
            result += [(self.first_epoch + epoch, row) for row in self.epoch(epoch)[first:stop].tolist()]
        return result


class TokenOrder:
    """The same stream counted in tokens: a row stands where its first token does.

    A micro-batch of `count` tokens has so many on average: the row that runs over its end belongs to it whole, and
    one that runs over its beginning to the one before. It has less than the longest row too many.

    Args:
        rows: The stream of rows.
        num_tokens: Tokens of every row by row number, integers [all rows], at least 1 where the stream goes.
    """

    def __init__(self, rows: RowOrder, num_tokens: npt.NDArray[np.integer]) -> None:
        """Count an epoch."""
        self.rows = rows
        self.num_tokens = num_tokens
        counts = [num_tokens[group] for group in rows.groups]
        self.epoch_size = int(sum(part.sum(dtype=np.int64) for part in counts))
        self.longest = int(max(part.max() for part in counts))
        if min(part.min() for part in counts) < 1:
            raise ValueError("a row without tokens has no place in the stream")
        self._starts: dict[int, npt.NDArray[np.int64]] = {}

    def keys(self, start: int, count: int) -> list[RowKey]:
        """Rows whose first token is one of [start, start + count) of the stream, as (epoch, row); at least one.

        Raises:
            UserError: The longest row has more than `count` tokens, so that some micro-batch would have no row.
        """
        if count < self.longest:
            raise UserError(
                f"{count:,} tokens a micro-batch, but row {self._longest_row():,} has {self.longest:,}",
                field="loop.micro_batch_tokens",
                fix="raise it, or keep fewer tokens and frames of a video",
            )
        result: list[RowKey] = []
        for epoch, first, stop in _epochs(start, count, self.epoch_size):
            begin, end = np.searchsorted(self._starts_of(epoch), [first, stop])
            shown = self.rows.first_epoch + epoch
            result += [(shown, row) for row in self.rows.epoch(epoch)[begin:end].tolist()]
        return result

    def _starts_of(self, epoch: int) -> npt.NDArray[np.int64]:
        """First token of each row of an epoch, in the epoch's order, int64 [rows]."""
        if epoch not in self._starts:
            counts = self.num_tokens[self.rows.epoch(epoch)]
            self._starts = {key: value for key, value in self._starts.items() if key == epoch - 1}
            self._starts[epoch] = np.cumsum(counts, dtype=np.int64) - counts
        return self._starts[epoch]

    def _longest_row(self) -> int:
        rows = np.concatenate(self.rows.groups)
        return int(rows[self.num_tokens[rows].argmax()])


def _epochs(start: int, count: int, epoch_size: int) -> Iterator[tuple[int, int, int]]:
    """Cut [start, start + count) at the ends of epochs: (epoch, first, stop) counted within each."""
    stop = start + count
    for epoch in range(start // epoch_size, -(-stop // epoch_size)):
        yield epoch, max(start - epoch * epoch_size, 0), min(stop - epoch * epoch_size, epoch_size)


class MicroBatchSampler(Sampler[list[RowKey]]):
    """The micro-batches of one rank from one step to another.

    Args:
        order: The stream of rows, counted in rows or in tokens.
        micro_batch_size: Rows of one forward pass on one rank, or its tokens (on average, see `TokenOrder`).
        gradient_accumulation_steps: Micro-batches of one optimizer step.
        rank: Of this process.
        world_size: Number of processes.
        start_step: First step to yield.
        num_steps: One past the last step.
    """

    def __init__(
        self,
        order: Stream,
        *,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        rank: int,
        world_size: int,
        start_step: int,
        num_steps: int,
    ) -> None:
        """Only keep the numbers; every batch is computed when asked for."""
        self.order = order
        self.micro_batch_size = micro_batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.rank = rank
        self.world_size = world_size
        self.steps = range(start_step, num_steps)

    def __iter__(self) -> Iterator[list[RowKey]]:
        """Yield the keys of each micro-batch."""
        for step in self.steps:
            for micro_step in range(self.gradient_accumulation_steps):
                chunk = (step * self.gradient_accumulation_steps + micro_step) * self.world_size + self.rank
                yield self.order.keys(chunk * self.micro_batch_size, self.micro_batch_size)

    def __len__(self) -> int:
        """Number of micro-batches."""
        return len(self.steps) * self.gradient_accumulation_steps


def num_steps(
    order: Stream, num_epochs: float, *, micro_batch_size: int, gradient_accumulation_steps: int, world_size: int
) -> int:
    """Optimizer steps of so many epochs, rounded, at least 1; `micro_batch_size` in what `order` counts."""
    return max(1, round(order.epoch_size * num_epochs / (micro_batch_size * gradient_accumulation_steps * world_size)))
