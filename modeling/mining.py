"""Choose a negative for each anchor among the videos of a batch, in blocks, so that no [B, B] matrix is ever held.

Lee et al. 2018 (§4.1.1) mine "semi-hard" (Schroff et al. 2015) and in the same breath "the hardest" negatives of 7,200
triplets: both are here, to choose from. Videos that are known to belong to the anchor, its neighbours in the graph,
are no negatives.

Legend: N anchors, C candidates, E width of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .losses.reduction import full_precision
from .losses.triplet import Mining

BLOCK = 1024
NONE = -1
"""Position of a negative where an anchor has none."""


@torch.no_grad()
def mine_negatives(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    *,
    strategy: Mining,
    excluded: tuple[Tensor, Tensor],
    generator: torch.Generator | None = None,
    block: int = BLOCK,
) -> Tensor:
    """The position of a negative for each anchor.

    `hardest`: the candidate nearest to the anchor. `semihard`: the nearest of those that are farther from it than the
    positive; where there is none, the farthest there is, which is the easiest of the too hard. `random`: any. Of
    equally near candidates the first is taken.

    Args:
        anchors: float [N, E], L2-normalised.
        positives: float [N, E], the positive of each.
        candidates: float [C, E], L2-normalised.
        strategy: See above.
        excluded: Two int64 [M], positions of anchors (ascending) and of candidates that are no negative of them:
            the anchor's own video, its positive, its neighbours.
        generator: For `random`; None takes the global one.
        block: Anchors whose distances to all candidates are in memory at once.

    Returns:
        int64 [N]; `NONE` where every candidate is excluded.

    Raises:
        ValueError: `block` is below 1, or `excluded` is not ascending.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    rows, columns = excluded
    if len(rows) and bool((rows[1:] < rows[:-1]).any()):
        raise ValueError("the excluded anchors must be in ascending order")
    result = torch.full((len(anchors),), NONE, dtype=torch.int64, device=anchors.device)
    if not len(candidates):
        return result
    # autocast would round cosines to three digits, and the ranking with them.
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positives, candidates = (full_precision(part) for part in (anchors, positives, candidates))
        for start in range(0, len(anchors), block):
            part = slice(start, min(start + block, len(anchors)))
            first, last = torch.searchsorted(rows, torch.tensor([part.start, part.stop], device=rows.device)).tolist()
            if strategy == "random":
                shape = (part.stop - part.start, len(candidates))
                similarity = torch.rand(shape, generator=generator, device=anchors.device)
            else:
                similarity = anchors[part] @ candidates.T
            similarity[rows[first:last] - part.start, columns[first:last]] = -torch.inf
            if strategy == "semihard":
                limit = (anchors[part] * positives[part]).sum(-1, keepdim=True)
                result[part] = _nearest_beyond(similarity, limit)
            else:
                result[part] = _first_maximum(similarity)
    return result


def _nearest_beyond(similarity: Tensor, limit: Tensor) -> Tensor:
    """The most similar below the limit, otherwise the least similar that is allowed."""
    chosen = _first_maximum(similarity.masked_fill(similarity >= limit, -torch.inf))
    lost = chosen == NONE
    if bool(lost.any()):
        rest = similarity[lost]
        chosen[lost] = _first_maximum(torch.where(rest == -torch.inf, rest, -rest))
    return chosen


def _first_maximum(values: Tensor) -> Tensor:
    """Position of the first largest value of each row, `NONE` where all are minus infinity."""
    largest = values.amax(dim=1, keepdim=True)
    first = (values == largest).to(torch.uint8).argmax(dim=1)  # argmax of values may take any of equal ones
    return torch.where(largest[:, 0] == -torch.inf, NONE, first)
