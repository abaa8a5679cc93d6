from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vidsim.engine.accelerator import make_accelerator
from vidsim.finetune.projection import principal_projection


def states_of(states: Tensor) -> Callable[[np.ndarray], Tensor]:
    return lambda positions: states[torch.from_numpy(positions)]


def start(projection: nn.Linear, states: Tensor) -> float:
    accelerator = make_accelerator("fp32")
    return principal_projection(projection, states_of(states), len(states), batch_size=2, accelerator=accelerator)


def test_directions_by_hand() -> None:
    # Directions, not lengths, count: (3, 0, 0) twice and (0, 4, 0) once; the third axis never occurs.
    projection = nn.Linear(3, 1)
    share = start(projection, torch.tensor([[3.0, 0, 0], [3, 0, 0], [0, 4, 0]]))
    torch.testing.assert_close(projection.weight.data, torch.tensor([[1.0, 0, 0]]))
    assert projection.bias.tolist() == [0.0]
    assert share == pytest.approx(2 / 3)


def test_cosines_survive_where_the_directions_suffice() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    projection = nn.Linear(12, 4)
    assert start(projection, states) == pytest.approx(1.0)
    before, after = (nn.functional.normalize(x.detach(), dim=-1) for x in (states, projection(states)))
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=0, atol=1e-5)


def test_more_outputs_than_inputs_leave_zeros() -> None:
    projection = nn.Linear(2, 5)
    assert start(projection, torch.tensor([[1.0, 0], [1, 1]])) == pytest.approx(1.0)
    assert projection.weight[2:].abs().sum() == 0
    torch.testing.assert_close(projection.weight[:2] @ projection.weight[:2].T, torch.eye(2), rtol=0, atol=1e-6)
