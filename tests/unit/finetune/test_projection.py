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


def start(projection: nn.Linear, states: Tensor, power: float = 0.0) -> float:
    accelerator = make_accelerator("fp32")
    pool = states_of(states)
    return principal_projection(projection, pool, len(states), power=power, batch_size=2, accelerator=accelerator)


# Mean (1, 2, 3); variance 6 along the first axis, 1.5 along the second, none along the third.
CROSS = torch.tensor([[4.0, 2, 3], [-2, 2, 3], [1, 3.5, 3], [1, 0.5, 3]])


def test_directions_by_hand() -> None:
    projection = nn.Linear(3, 1)
    share = start(projection, CROSS)
    torch.testing.assert_close(projection.weight.data, torch.tensor([[1.0, 0, 0]]))
    torch.testing.assert_close(projection.bias.data, torch.tensor([-1.0]))
    assert share == pytest.approx(6 / (6 + 1.5))


def test_whitening_by_hand() -> None:
    # Standard deviations are as 2 to 1: power 1 makes them equal, power 0.5 leaves the root of 2.
    for power, factor in ((0.0, 1.0), (0.5, 2**0.5), (1.0, 2.0)):
        projection = nn.Linear(3, 2)
        assert start(projection, CROSS, power) == pytest.approx(1.0)
        torch.testing.assert_close(projection.weight.data, torch.tensor([[1.0, 0, 0], [0, factor, 0]]))
        torch.testing.assert_close(projection.bias.data, torch.tensor([-1.0, -2 * factor]))


def test_cosines_seen_from_the_mean_survive_where_the_directions_suffice() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 3, generator=generator) @ torch.randn(3, 12, generator=generator) + 5
    projection = nn.Linear(12, 4)
    assert start(projection, states) == pytest.approx(1.0)
    before, after = (nn.functional.normalize(x.detach(), dim=-1) for x in (states - states.mean(0), projection(states)))
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=0, atol=1e-4)


def test_more_outputs_than_inputs_leave_zeros_and_noise_is_not_blown_up() -> None:
    projection = nn.Linear(3, 5)
    assert start(projection, CROSS, 1.0) == pytest.approx(1.0)
    assert projection.weight[3:].abs().sum() == 0
    assert projection.weight.abs().max() <= 1001
