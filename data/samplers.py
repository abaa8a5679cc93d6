"""The order of rows as a pure function of (seed, epoch), cut into steps by arithmetic.

The rows of all epochs form one endless stream; step `s` takes the stream's rows [s·G, (s+1)·G), G being the global
batch size. Nothing is dropped at the end of an epoch, any step can be reached without walking there, and the rows
of a step do not depend on how they are split over ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

RowKey = tuple[int, int]
"""(epoch, row): what a data set is asked for, so that masks can follow the epoch in any worker."""


class RowOrder:
    """The endless stream of rows of one training stage.

    Args:
        groups: Row numbers of each data set, int64 [n].
        order: `together` shuffles all groups as one; `sequential` goes through the groups one after another in
            every epoch, each shuffled (the 2021 winner's job 5).
        seed: Seed of the run.
    """

    def __init__(
        self, groups: Sequence[np.ndarray], *, order: Literal["together", "sequential"] = "together", seed: int
    ) -> None:
        """Join the groups where they are shuffled together."""
        self.groups = [np.concatenate(list(groups))] if order == "together" else list(groups)
        self.seed = seed
        self.num_rows = sum(len(group) for group in self.groups)
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
        result = []
        for position in range(start, start + count):
            epoch, offset = divmod(position, self.num_rows)
            result.append((epoch, int(self.epoch(epoch)[offset])))
        return result


class MicroBatchSampler(Sampler[list[RowKey]]):
    """The micro-batches of one rank from one step to another.

    Args:
        order: The stream of rows.
        micro_batch_size: Rows of one forward pass on one rank.
        gradient_accumulation_steps: Micro-batches of one optimizer step.
        rank: Of this process.
        world_size: Number of processes.
        start_step: First step to yield.
        num_steps: One past the last step.
    """

    def __init__(
        self,
        order: RowOrder,
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
