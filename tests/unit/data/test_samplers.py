from __future__ import annotations

import numpy as np

from vidsim.data.samplers import MicroBatchSampler, RowKey, RowOrder


def batches(
    order: RowOrder, *, micro: int, accumulation: int, world: int, steps: int, start: int = 0
) -> list[set[RowKey]]:
    """Rows of each step, over all ranks and micro-batches."""
    rows: list[set[RowKey]] = [set() for _ in range(steps - start)]
    for rank in range(world):
        sampler = MicroBatchSampler(
            order,
            micro_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            rank=rank,
            world_size=world,
            start_step=start,
            num_steps=steps,
        )
        assert len(sampler) == (steps - start) * accumulation
        for index, keys in enumerate(sampler):
            assert len(keys) == micro
            rows[index // accumulation].update(keys)
    return rows


def test_every_row_once_an_epoch() -> None:
    order = RowOrder([np.arange(10), np.arange(10, 17)], seed=3)
    keys = order.keys(0, 51)
    for epoch in range(3):
        assert sorted(row for key, row in keys if key == epoch) == list(range(17))
    assert [row for _, row in keys[:17]] != [row for _, row in keys[17:34]]
    assert keys == RowOrder([np.arange(10), np.arange(10, 17)], seed=3).keys(0, 51)
    assert keys != RowOrder([np.arange(10), np.arange(10, 17)], seed=4).keys(0, 51)


def test_sequential_goes_group_by_group() -> None:
    order = RowOrder([np.arange(10), np.arange(10, 17)], order="sequential", seed=3)
    rows = order.epoch(5)
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:]) == list(range(10, 17))
    assert rows[:10].tolist() != list(range(10))


def test_a_step_has_the_same_rows_however_it_is_split() -> None:
    order = RowOrder([np.arange(29)], seed=0)
    whole = batches(order, micro=8, accumulation=1, world=1, steps=9)
    assert all(len(rows) == 8 for rows in whole)
    for micro, accumulation, world in ((4, 2, 1), (4, 1, 2), (1, 8, 1), (1, 2, 4)):
        assert batches(order, micro=micro, accumulation=accumulation, world=world, steps=9) == whole


def test_starting_later_gives_the_rest() -> None:
    order = RowOrder([np.arange(29)], seed=0)
    straight = batches(order, micro=4, accumulation=2, world=2, steps=9)
    again = RowOrder([np.arange(29)], seed=0)
    assert batches(again, micro=4, accumulation=2, world=2, steps=9, start=5) == straight[5:]
