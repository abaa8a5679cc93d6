from __future__ import annotations

import numpy as np
import pytest
import torch

from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.gather import map_rows, rank_rows


@pytest.mark.parametrize(("num_rows", "world_size"), [(10, 3), (2, 4), (0, 2), (8, 4)])
def test_every_row_belongs_to_one_rank(num_rows: int, world_size: int) -> None:
    rows = [row for rank in range(world_size) for row in rank_rows(num_rows, rank, world_size)]
    assert rows == list(range(num_rows))


def test_rows_come_back_in_order() -> None:
    table = torch.arange(22, dtype=torch.float32).reshape(11, 2)
    seen = []

    def encode(positions: np.ndarray) -> torch.Tensor:
        seen.append(len(positions))
        return table[torch.from_numpy(positions)]

    result = map_rows(encode, 11, 2, batch_size=4, accelerator=make_accelerator("fp32"))
    assert (result == table.numpy()).all()
    assert seen == [4, 4, 3]
