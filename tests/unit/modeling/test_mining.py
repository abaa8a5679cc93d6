"""Mining against a search in plain Python, with ties, masks and anchors that have no negative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidsim.modeling.losses.triplet import Mining
from vidsim.modeling.mining import NONE, mine_negatives


def case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors on a coarse grid, so that equal similarities are common and exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    anchors, positives, candidates = (
        torch.randint(-2, 3, (count, 3), generator=generator).float() for count in (23, 23, 17)
    )
    excluded = torch.rand(23, 17, generator=generator) < 0.3
    excluded[4] = True  # no negative at all
    excluded[5] = False
    excluded[6, 1:] = True  # one
    return anchors, positives, candidates, excluded


def brute_force(
    anchors: Tensor, positives: Tensor, candidates: Tensor, excluded: Tensor, strategy: Mining
) -> list[int]:
    result = []
    for row in range(len(anchors)):
        similarity = {
            column: float(sum(a * c for a, c in zip(anchors[row].tolist(), candidates[column].tolist(), strict=True)))
            for column in range(len(candidates))
            if not excluded[row, column]
        }
        limit = float((anchors[row] * positives[row]).sum())
        farther = {column: value for column, value in similarity.items() if value < limit}
        if not similarity:
            result.append(NONE)
        elif strategy == "hardest":
            result.append(max(similarity, key=lambda column: (similarity[column], -column)))
        elif farther:
            result.append(max(farther, key=lambda column: (farther[column], -column)))
        else:
            result.append(min(similarity, key=lambda column: (similarity[column], column)))
    return result


@pytest.mark.parametrize("block", [1, 7, 23, 1024])
@pytest.mark.parametrize("strategy", ["semihard", "hardest"])
def test_it_finds_what_a_search_of_everything_finds(strategy: Mining, block: int) -> None:
    for seed in range(8):
        anchors, positives, candidates, excluded = case(seed)
        rows, columns = excluded.nonzero(as_tuple=True)
        found = mine_negatives(anchors, positives, candidates, strategy=strategy, excluded=(rows, columns), block=block)
        assert found.tolist() == brute_force(anchors, positives, candidates, excluded, strategy)


def test_autocast_does_not_round_the_ranking() -> None:
    """1 + 2^-10 is 1 in bf16: the two candidates would be equal, and the first of them taken."""
    anchors = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[1.0, 0.0], [1.0 + 2**-10, 0.0]])
    nothing = torch.zeros(0, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        found = mine_negatives(anchors, anchors, candidates, strategy="hardest", excluded=(nothing, nothing))
    assert found.tolist() == [1]


def test_random_negatives_are_allowed_ones_and_all_of_them() -> None:
    anchors, positives, candidates, excluded = case(0)
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros_like(excluded)
    for _ in range(400):
        found = mine_negatives(
            anchors,
            positives,
            candidates,
            strategy="random",
            excluded=excluded.nonzero(as_tuple=True),  # type: ignore[arg-type]
            generator=generator,
            block=5,
        )
        assert found[4] == NONE
        has = found != NONE
        seen[has.nonzero()[:, 0], found[has]] = True
    assert (seen == ~excluded).all()


def test_no_candidates_and_bad_arguments() -> None:
    anchors = torch.eye(3)
    nothing = (torch.zeros(0, dtype=torch.int64),) * 2
    assert mine_negatives(anchors, anchors, anchors[:0], strategy="hardest", excluded=nothing).tolist() == [NONE] * 3
    assert mine_negatives(anchors[:0], anchors[:0], anchors, strategy="hardest", excluded=nothing).tolist() == []
    with pytest.raises(ValueError, match="block"):
        mine_negatives(anchors, anchors, anchors, strategy="hardest", excluded=nothing, block=0)
    unordered = (torch.tensor([1, 0]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="ascending"):
        mine_negatives(anchors, anchors, anchors, strategy="hardest", excluded=unordered)


def test_it_keeps_no_gradient() -> None:
    anchors = torch.eye(3, requires_grad=True)
    nothing = (torch.zeros(0, dtype=torch.int64),) * 2
    found = mine_negatives(anchors, anchors, torch.eye(3) * 2, strategy="hardest", excluded=nothing)
    assert not found.requires_grad
