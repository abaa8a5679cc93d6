from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.samplers import MicroBatchSampler, RowKey, RowOrder, TokenOrder, num_steps


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


@pytest.mark.parametrize("by_tokens", [False, True])
def test_a_later_stage_counts_its_epochs_on(by_tokens):
    groups = [np.arange(1, 40), np.arange(40, 61)]
    first, second = (RowOrder(groups, seed=0, first_epoch=number) for number in (0, 2))
    streams = [TokenOrder(rows, COUNTS) if by_tokens else rows for rows in (first, second)]
    count = streams[0].epoch_size + 9
    keys, later = (stream.keys(0, count) for stream in streams)
    assert later == [(epoch + 2, row) for epoch, row in keys]
    assert {epoch for epoch, _ in later} == {2, 3}


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


COUNTS = np.random.default_rng(0).integers(3, 20, 61).astype(np.int32)


def tokens(seed: int = 0) -> TokenOrder:
    """60 rows of 3 to 19 tokens; row 0 is no row of the stream."""
    return TokenOrder(RowOrder([np.arange(1, 40), np.arange(40, 61)], seed=seed), COUNTS)


def token_batches(order: TokenOrder, budget: int, *, rank: int = 0, start: int = 0, **sizes: int) -> list[list[RowKey]]:
    world, accumulation = sizes.get("world", 1), sizes.get("accumulation", 1)
    return list(
        MicroBatchSampler(
            order,
            micro_batch_size=budget,
            gradient_accumulation_steps=accumulation,
            rank=rank,
            world_size=world,
            start_step=start,
            num_steps=sizes["steps"],
        )
    )


def test_steps_of_tokens_are_the_rows_by_their_first_token() -> None:
    """Against walking along the stream, row by row."""
    order = tokens()
    expected: list[list[RowKey]] = [[] for _ in range(40)]
    position = 0
    for key in RowOrder([np.arange(1, 40), np.arange(40, 61)], seed=0).keys(0, 240):
        if position < 40 * 50:
            expected[position // 50].append(key)
        position += int(COUNTS[key[1]])
    assert token_batches(order, 50, steps=40) == expected
    assert order.epoch_size == COUNTS[1:].sum()


def test_every_row_once_an_epoch_by_tokens() -> None:
    order = tokens()
    seen = Counter(key for batch in token_batches(order, 31, steps=4 * order.epoch_size // 31) for key in batch)
    assert {key: seen[key] for key in ((epoch, row) for epoch in range(3) for row in range(1, 61))} == {
        (epoch, row): 1 for epoch in range(3) for row in range(1, 61)
    }
    assert set(seen.values()) == {1}


def test_micro_batches_of_tokens_keep_to_their_size() -> None:
    sizes = [int(COUNTS[[row for _, row in batch]].sum()) for batch in token_batches(tokens(), 64, steps=300)]
    assert max(sizes) < 64 + COUNTS.max()
    assert min(sizes) > 64 - COUNTS.max()
    assert sum(sizes) == pytest.approx(300 * 64, abs=19)


def test_the_smallest_size_leaves_no_micro_batch_empty() -> None:
    longest = int(COUNTS[1:].max())
    assert all(token_batches(tokens(), longest, steps=500))
    with pytest.raises(UserError, match=rf"{longest - 1} tokens a micro-batch, but row \d+ has {longest}"):
        token_batches(tokens(), longest - 1, steps=1)


def test_a_step_of_tokens_has_the_same_rows_however_it_is_split() -> None:
    whole = token_batches(tokens(), 160, steps=30)
    for budget, accumulation, world in ((80, 2, 1), (80, 1, 2), (40, 2, 2), (20, 1, 8)):
        parts = [
            token_batches(tokens(), budget, rank=rank, steps=30, accumulation=accumulation, world=world)
            for rank in range(world)
        ]
        assert {len(part) for part in parts} == {30 * accumulation}
        for step, rows in enumerate(whole):
            mine = [part[step * accumulation + micro] for micro in range(accumulation) for part in parts]
            assert [key for keys in mine for key in keys] == rows


def test_tokens_start_at_any_step() -> None:
    straight = token_batches(tokens(), 40, steps=60, accumulation=2)
    assert token_batches(tokens(), 40, start=47, steps=60, accumulation=2) == straight[94:]
    assert token_batches(tokens(1), 40, steps=60, accumulation=2) != straight


def test_a_row_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        TokenOrder(RowOrder([np.arange(3)], seed=0), np.array([1, 0, 2]))


def test_number_of_steps() -> None:
    rows = RowOrder([np.arange(100)], seed=0)
    sizes = {"gradient_accumulation_steps": 2, "world_size": 2}
    assert num_steps(rows, 3, micro_batch_size=8, **sizes) == round(300 / 32)
    assert num_steps(rows, 0.01, micro_batch_size=8, **sizes) == 1
    assert num_steps(TokenOrder(rows, np.full(100, 7)), 3, micro_batch_size=8, **sizes) == round(2100 / 32)
