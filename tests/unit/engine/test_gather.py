from __future__ import annotations

from pathlib import Path
from typing import Any

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


RANKS = """
import os
import sys

import numpy as np
import torch
from torch import nn
from vidsim.common.entry import leave
from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.gather import map_rows
from vidsim.engine.sharding import shard


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 2)])

    def encode(self, x):
        return self.layers[0](x)

    def forward(self, x):
        return Net.encode(self, x)


accelerator = make_accelerator("fp32")
torch.manual_seed(0)
module = Net()
wanted = [parameter.detach().clone() for parameter in module.parameters()]
if sys.argv[1] == "sharded":
    group = {"params": list(module.parameters()), "names": [name for name, _ in module.named_parameters()]}
    shard(module, torch.optim.AdamW([group], lr=0.1), accelerator)
for num_rows in (0, 1, 8, 9):
    table = torch.arange(3.0 * num_rows).reshape(num_rows, 3)
    found = map_rows(lambda rows: module.encode(table[rows]), num_rows, 2, batch_size=4, accelerator=accelerator)
    np.testing.assert_allclose(found, (table @ wanted[0].T + wanted[1]).numpy(), rtol=1e-6)
    os.write(1, f"{found.shape}\\n".encode())  # in one piece: the other process writes to the same pipe
accelerator.wait_for_everyone()
leave(0)
"""


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_two_processes_with_unlike_numbers_of_rows(kind: str, tmp_path: Path, on_two_processes: Any) -> None:
    """9 rows in batches of 4 are 5 and 4: two batches of one process, one of the other; 1 row leaves one with none."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS, encoding="utf-8")
    shapes = sorted(on_two_processes(script, kind).splitlines())
    assert shapes == sorted(2 * ["(0, 2)", "(1, 2)", "(8, 2)", "(9, 2)"])
