from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from vidsim.engine.seeding import mix, seed_everything, seed_step


def test_mix_is_splitmix64() -> None:
    # First output of splitmix64 from state 0, as published with the generator.
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(1) == 0x910A2DEC89025CC1


def test_mix_depends_on_every_value_and_on_their_order() -> None:
    seen = {
        mix(seed, step, micro, rank) for seed in (0, 1) for step in range(50) for micro in (0, 1) for rank in (0, 1)
    }
    assert len(seen) == 2 * 50 * 2 * 2
    assert mix(1, 2) != mix(2, 1)
    # The CPU generator of torch takes the lower 32 bits only: they must differ too.
    assert len({value & 0xFFFF_FFFF for value in seen}) == len(seen)


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    seed_step(7, 3, 1, 0)
    wanted = torch.rand(5)
    torch.manual_seed(99)
    torch.rand(1000)
    seed_step(7, 3, 1, 0)
    assert torch.equal(torch.rand(5), wanted)


@pytest.mark.parametrize("place", [(8, 3, 1, 0), (7, 4, 1, 0), (7, 3, 0, 0), (7, 3, 1, 1)])
def test_every_place_draws_its_own(place: tuple[int, int, int, int]) -> None:
    seed_step(7, 3, 1, 0)
    first = torch.rand(5)
    seed_step(*place)
    assert not torch.equal(torch.rand(5), first)


def test_seed_everything_seeds_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_everything(2021)
    first = draw()
    seed_everything(2021)
    assert draw() == first
    seed_everything(2022)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


@pytest.mark.gpu
def test_a_step_seeds_the_gpu() -> None:
    seed_step(7, 3, 1, 0)
    first = torch.rand(5, device="cuda")
    torch.rand(100, device="cuda")
    seed_step(7, 3, 1, 0)
    assert torch.equal(torch.rand(5, device="cuda"), first)
