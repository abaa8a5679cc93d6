from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from vidsim.data.loading import step_batches
from vidsim.data.samplers import MicroBatchSampler, RowKey, RowOrder


class Keys(Dataset[dict[str, Any]]):
    """Rows that say how they were asked for."""

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        return {"epoch": key[0], "row": key[1]}


def collate(rows: Any) -> dict[str, Any]:
    return {"keys": [(row["epoch"], row["row"]) for row in rows]}


def load(start: int, *, num_workers: int = 0) -> list[list[RowKey]]:
    sampler = MicroBatchSampler(
        RowOrder([np.arange(11)], seed=1),
        micro_batch_size=4,
        gradient_accumulation_steps=1,
        rank=0,
        world_size=1,
        start_step=start,
        num_steps=6,
    )
    return [batch["keys"] for batch in step_batches(Keys(), sampler, collate, num_workers=num_workers, seed=0)]


def test_it_starts_at_any_step() -> None:
    straight = load(0)
    assert [len(keys) for keys in straight] == [4] * 6
    assert load(4) == straight[4:]
    assert load(6) == []


@pytest.mark.multi_process
def test_workers_change_nothing() -> None:
    assert load(2, num_workers=2) == load(2)


def test_nothing_is_drawn_from_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(0)
    assert torch.equal(torch.rand(3), expected)
