from __future__ import annotations

import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from vidsim.common.errors import UserError
from vidsim.engine.schedule import ScheduleConfig, apply, multiplier, num_warmup_steps


def curve(config: ScheduleConfig, num_steps: int) -> list[float]:
    return [multiplier(config, step, num_steps) for step in range(num_steps)]


def test_cosine_by_hand() -> None:
    config = ScheduleConfig(warmup_fraction=0.2)
    # 10 steps, 2 of warm-up; then p = 0, 1/8, ... 7/8.
    falling = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert curve(config, 10) == pytest.approx([0.5, 1.0, *falling])
    assert curve(config, 10)[6] == pytest.approx(0.5)
    assert multiplier(config, 10, 10) == 0.0


def test_linear_and_constant_by_hand() -> None:
    linear = ScheduleConfig(kind="linear", warmup_fraction=0.0)
    assert curve(linear, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    constant = ScheduleConfig(kind="constant", warmup_fraction=0.5, min_ratio=0.3)
    assert curve(constant, 4) == pytest.approx([0.5, 1.0, 1.0, 1.0])


def test_it_falls_to_the_smallest_ratio_and_stays_there() -> None:
    config = ScheduleConfig(kind="linear", warmup_fraction=0.0, min_ratio=0.2)
    assert multiplier(config, 2, 4) == pytest.approx(0.6)
    assert multiplier(config, 4, 4) == multiplier(config, 400, 4) == pytest.approx(0.2)


def test_it_is_the_curve_of_transformers_without_the_idle_first_step() -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 6, 100)
    theirs = []
    for _ in range(100):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = curve(ScheduleConfig(warmup_fraction=0.06), 100)
    assert ours[6:] == pytest.approx(theirs[6:])
    # Theirs rises from 0, so that the first step changes nothing.
    assert ours[:6] == pytest.approx(theirs[1:7])


@pytest.mark.parametrize(
    ("fraction", "num_steps", "expected"), [(0.06, 50, 3), (0.06, 10, 1), (0.06, 5, 0), (0.0, 9, 0), (1.0, 9, 9)]
)
def test_warmup_steps(fraction: float, num_steps: int, expected: int) -> None:
    assert num_warmup_steps(ScheduleConfig(warmup_fraction=fraction), num_steps) == expected


@pytest.mark.parametrize("num_steps", [1, 2, 17])
@pytest.mark.parametrize("fraction", [0.0, 0.06, 1.0])
def test_every_step_learns_and_none_more_than_the_peak(fraction: float, num_steps: int) -> None:
    for kind in ("cosine", "linear", "constant"):
        values = curve(ScheduleConfig(kind=kind, warmup_fraction=fraction), num_steps)  # type: ignore[arg-type]
        assert all(0 < value <= 1 for value in values)
        assert max(values) == 1.0


def test_apply_sets_each_group_from_its_own_peak() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate, "base_lr": rate} for rate in (5e-5, 5e-4)]
    optimizer = torch.optim.AdamW(groups)
    apply(optimizer, 0.5)
    apply(optimizer, 0.5)  # not cumulative
    assert [group["lr"] for group in optimizer.param_groups] == [2.5e-5, 2.5e-4]


def test_a_negative_step_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="-1"):
        multiplier(ScheduleConfig(), -1, 10)


@pytest.mark.parametrize(("field", "value"), [("warmup_fraction", 1.5), ("min_ratio", -0.1)])
def test_impossible_shares_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"field 'schedule\.{field}': {value}"):
        ScheduleConfig(**{field: value}).validate()  # type: ignore[arg-type]
    ScheduleConfig().validate()


def test_a_constant_rate_with_a_share_to_fall_to_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule\.min_ratio"):
        ScheduleConfig(kind="constant", min_ratio=0.1).validate()
