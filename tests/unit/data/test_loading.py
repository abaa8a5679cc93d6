from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from vidsim.data.arrow import open_videos
from vidsim.data.collators import VideoRows
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
    return [batch["keys"] for batch in step_batches(Keys(), sampler, collate, num_workers=num_workers)]


def test_it_starts_at_any_step() -> None:
    straight = load(0)
    assert [len(keys) for keys in straight] == [4] * 6
    assert load(4) == straight[4:]
    assert load(6) == []


def test_workers_change_nothing() -> None:
    assert load(2, num_workers=2) == load(2)


def test_an_error_of_a_worker_comes_through_and_ends_it() -> None:
    def fail(rows: Any) -> dict[str, Any]:
        raise ValueError(f"cannot use {len(rows)} rows")

    sampler = [[(0, number)] for number in range(50)]
    with pytest.raises(ValueError, match="cannot use 1 rows"):
        next(step_batches(Keys(), sampler, fail, num_workers=2))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_workers_end_with_the_iterator_and_run_only_a_little_ahead() -> None:
    asked: list[RowKey] = []

    def sampler() -> Any:
        for number in range(1000):
            asked.append((0, number))
            yield [(0, number)]

    batches: Any = step_batches(Keys(), sampler(), collate, num_workers=2)
    assert next(batches) == {"keys": [(0, 0)]}
    assert len(asked) == 5
    batches.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_each_worker_has_its_own_collator() -> None:
    """A tokenizer keeps truncation in itself; two threads in one would disturb each other."""

    class Collator:
        busy = False

        def __call__(self, rows: Any) -> dict[str, Any]:
            assert not self.busy
            self.busy = True
            time.sleep(0.002)
            self.busy = False
            return collate(rows)

    batches = step_batches(Keys(), [[(0, number)] for number in range(40)], Collator(), num_workers=4)
    assert [batch["keys"] for batch in batches] == [[(0, number)] for number in range(40)]


@pytest.mark.parametrize("start", [0, 9])
def test_shards_ranks_and_workers_share_the_rows(write_data_set: Any, start: int) -> None:
    """7 shards, 2 ranks, 2 workers: nothing lost, nothing twice, from the beginning and from the middle."""
    made = [
        {"id": f"v{number}", "title": "t", "frames": np.full((number % 5, 4), number, np.float16)}
        for number in range(160)
    ]
    rows = VideoRows(open_videos(write_data_set(made, num_shards=7)))
    order = RowOrder([np.arange(160)], seed=1)

    def check(batch: Any) -> dict[str, Any]:
        for row in batch:
            assert row["frames"].tolist() == [[int(row["id"][1:])] * 4] * (int(row["id"][1:]) % 5)
        return {"ids": [row["id"] for row in batch]}

    seen: list[str] = []
    for rank in range(2):
        sampler = MicroBatchSampler(
            order,
            micro_batch_size=2,
            gradient_accumulation_steps=2,
            rank=rank,
            world_size=2,
            start_step=start,
            num_steps=20,
        )
        batches = step_batches(rows, sampler, check, num_workers=2)
        seen += [name for batch in batches for name in batch["ids"]]
    assert sorted(seen) == sorted(f"v{row}" for _, row in order.keys(start * 8, 160 - start * 8))
    assert start or len(set(seen)) == 160


def test_nothing_is_drawn_from_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(0)
    assert torch.equal(torch.rand(3), expected)
