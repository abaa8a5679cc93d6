"""Triplet losses on squared Euclidean distance: an anchor shall be nearer to its positive than to its negative.

The three forms of Lee et al. 2018 (§3.2.1), of `d = |a - p|^2 - |a - n|^2 + margin`; of L2-normalised embeddings
`|x - y|^2 = 2 - 2 cos`, so that d is in [-4, 4] + margin. Most libraries take the distance itself, not its square.
Every loss is a sum over the triplets divided by a count (see `reduction`): it adds up over ranks and micro-batches.

Legend: N triplets, E width of an embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .reduction import Denominator, divide, full_precision, no_autocast

TripletForm = Literal["hinge", "log", "exponential"]
CowatchLoss = Literal[TripletForm, "contrastive", "cosent"]
Mining = Literal["random", "semihard", "hardest"]


def check_margin(form: CowatchLoss, mining: Mining, margin: float) -> None:
    """Refuse settings under which nothing would ever be learned.

    A semi-hard negative is farther from the anchor than the positive is, so that a hinge without margin is 0 for it.

    Raises:
        ValueError: The margin is negative, not finite, or 0 with a hinge on semi-hard negatives.
    """
    if not 0 <= margin < float("inf"):
        raise ValueError(f"the margin must be a number of at least 0, not {margin:g}")
    if margin == 0 and form == "hinge" and mining == "semihard":
        raise ValueError("with margin 0 the hinge of every semi-hard negative is 0: nothing would be learned")


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """`|x - y|^2` row by row.

    Args:
        first: float [N, E].
        second: float [N, E].

    Returns:
        float [N], at least 0.
    """
    return (full_precision(first) - full_precision(second)).square().sum(-1)


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.1,
    form: TripletForm = "hinge",
    valid: Tensor | None = None,
    denominator: Denominator = None,
) -> Tensor:
    """Mean triplet loss of one form.

    `hinge`: `max(d, 0)`; `log`: `log(1 + exp d)`; `exponential`: `exp d`.

    Args:
        anchor: float [N, E], usually L2-normalised.
        positive: float [N, E].
        negative: float [N, E].
        margin: At least 0, in squared distance.
        form: What is made of d.
        valid: bool [N], triplets that count; None: all.
        denominator: Valid triplets in the global batch; None: those given.

    Returns:
        float scalar >= 0; 0 with zero gradient if there is no valid triplet.
    """
    excess = squared_distance(anchor, positive) - squared_distance(anchor, negative) + margin
    if valid is None:
        valid = torch.ones_like(excess, dtype=torch.bool)
    excess = excess[valid]
    if form == "hinge":
        each = excess.clamp(min=0)
    elif form == "log":
        each = torch.nn.functional.softplus(excess)
    else:
        each = excess.exp()
    return divide(each.sum(), denominator, valid.sum())


def contrastive(
    anchor: Tensor,
    positive: Tensor,
    candidates: Tensor,
    *,
    excluded: tuple[Tensor, Tensor],
    temperature: float = 0.1,
    denominator: Denominator = None,
) -> Tensor:
    """Mean InfoNCE of a positive among all negatives of a batch, in nats.

    `-log(e^(a.p / T) / (e^(a.p / T) + sum over the negatives n of e^(a.n / T)))`. Nothing is mined: the softmax gives
    near negatives the larger gradients. N x C cosines are held.

    Args:
        anchor: float [N, E], L2-normalised.
        positive: float [N, E].
        candidates: float [C, E].
        excluded: Two int64 [M], positions of anchors and of candidates that are no negative of them: the anchor's
            own video, its positive, its neighbours.
        temperature: > 0.
        denominator: Triplets in the global batch; None: N.

    Returns:
        float scalar >= 0; an anchor without a negative counts as 0.
    """
    with no_autocast(anchor):
        anchor, positive, candidates = (full_precision(part) for part in (anchor, positive, candidates))
        own = (anchor * positive).sum(-1) / temperature
        others = anchor @ candidates.T / temperature
    others = others.index_put(excluded, others.new_tensor(-torch.inf))
    each = torch.cat([own[:, None], others], dim=1).logsumexp(dim=1) - own
    return divide(each.sum(), denominator, len(each))
