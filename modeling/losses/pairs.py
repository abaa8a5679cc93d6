"""Losses on labelled pairs: how well do the cosines of N pairs follow their labels?

`mse`, `bernoulli_kl` and `r_drop_embeddings` are sums over items and take a global
`denominator`. `lbpc` and `cosent` compare pairs with each other and have no such sum: on several ranks,
gather cosines (with gradient) and labels, compute the loss on all N on every rank and divide by the world
size.

Legend: N pairs, B videos, E width of an embedding. Cosines are in [-1, 1], labels in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .reduction import Denominator, divide, full_precision


def mse(cosines: Tensor, labels: Tensor, denominator: Denominator = None) -> Tensor:
    """Squared error of the cosine, mean over the pairs (arXiv 2111.01677 §2.3, on rank-normalised labels).

    Args:
        cosines: float [N].
        labels: float [N].
        denominator: Pairs in the global batch; None = N.

    Returns:
        float scalar; 0 with zero gradient if N = 0. Adds up over ranks and micro-batches.
    """
    error = full_precision(cosines) - labels.to(cosines.device)
    return divide(error.square().sum(), denominator, error.shape[0])


def lbpc(cosines: Tensor, labels: Tensor, temperature: float = 0.2, min_deviation: float = 1e-3) -> Tensor:
    """Minus the Pearson correlation, over the batch, between softmax(cosine / temperature) and the labels.

    `-corr(s, y)`, `s_i = exp(cos_i / T) / sum_j exp(cos_j / T)` (LBPC, "loss by Pearson correlation";
    published on AIAC 2021 with raw labels and T = .2: .836 on the test against .833 for `mse`, one run each).
    The exponential stretches the similar end; its sum cancels in the correlation. Larger batches estimate it
    better (2048 published).

    Args:
        cosines: float [N].
        labels: float [N].
        temperature: > 0.
        min_deviation: Floor for the standard deviation of N * s, so that equal cosines have a bounded
            gradient.

    Returns:
        float scalar in [-1, 1]; 0 with zero gradient for fewer than 2 pairs or equal labels. Depends on the
        batch.
    """
    cosines = full_precision(cosines)
    if cosines.shape[0] < 2:
        return cosines.sum() * 0.0
    labels = labels.to(cosines)
    stretched = torch.softmax(cosines / temperature, dim=0) * cosines.shape[0]  # mean 1
    stretched = stretched - stretched.mean()
    differ = labels.max() > labels.min()  # of equal labels, centring may leave rounding noise
    centred = (labels - labels.mean()) * differ
    deviation = stretched.square().mean().clamp(min=min_deviation**2).sqrt()
    label_deviation = centred.square().mean().sqrt().clamp(min=1e-12)
    return -(stretched * centred).mean() / (deviation * label_deviation)


def cosent(cosines: Tensor, labels: Tensor, scale: float = 20.0) -> Tensor:
    """Ranking loss: a pair with the higher label shall have the higher cosine (CoSENT, Su 2022, scale 20).

    `log(1 + sum over (i, j) with y_i > y_j of exp(scale * (cos_j - cos_i)))`. Ties in the labels ask for
    nothing. Only differences of cosines matter, so nothing holds their level: combine it with `mse` where the
    level counts.

    Args:
        cosines: float [N].
        labels: float [N].
        scale: > 0.

    Returns:
        float scalar >= 0; 0 with zero gradient if no two labels differ. Grows with the batch (about 2 log N).
    """
    cosines = full_precision(cosines)
    labels = labels.to(cosines)
    difference = scale * (cosines[None, :] - cosines[:, None])  # [i, j] = cos_j - cos_i
    wrong_way = difference.masked_fill(labels[:, None] <= labels[None, :], -torch.inf)
    return torch.cat([cosines.new_zeros(1), wrong_way.flatten()]).logsumexp(dim=0)


def bernoulli_kl(
    cosines: Tensor, labels: Tensor, denominator: Denominator = None, min_probability: float = 0.05
) -> Tensor:
    """KL divergence from label to cosine, both read as the probability of "alike"; mean over the pairs.

    `y log(y / p) + (1 - y) log((1 - y) / (1 - p))`, p = the cosine clamped to [m, 1 - m]. The fourth place of
    AIAC 2021 added half a KL term to its `mse` against overfitting. Of the possible readings this one is
    chosen because it is a sum over pairs (so it does not depend on how the batch is cut), has its minimum
    where `mse` has it, and sees the level of the cosines, to which a KL between two softmaxes over the batch
    is blind. Outside the clamp the loss goes on along its tangent where that leads back inside, and is flat
    where the label asks for the bound.

    Args:
        cosines: float [N].
        labels: float [N], in [0, 1].
        denominator: Pairs in the global batch; None = N.
        min_probability: m, in (0, .5); the gradient stays below 1 / m.

    Returns:
        float scalar >= 0 in nats; 0 with zero gradient if N = 0. Adds up over ranks and micro-batches.
    """
    cosines = full_precision(cosines)
    labels = labels.to(cosines)
    p = cosines.clamp(min_probability, 1 - min_probability)
    per_pair = (
        torch.xlogy(labels, labels)
        + torch.xlogy(1 - labels, 1 - labels)
        - torch.xlogy(labels, p)
        - torch.xlogy(1 - labels, 1 - p)
    )
    slope = ((p - labels) / (p * (1 - p))).detach()
    per_pair = per_pair + functional.relu(slope * (cosines - p))
    return divide(per_pair.sum(), denominator, per_pair.shape[0])


def r_drop_embeddings(first: Tensor, second: Tensor, denominator: Denominator = None) -> Tensor:
    """`1 - cosine` between the embeddings of two passes with different dropout, mean over the videos.

    R-Drop (arXiv 2106.14448) on the embeddings: agreeing cosines alone would be satisfied by a common rotation of both
    embeddings of a pair.

    Args:
        first: float [B, E], not necessarily normalised.
        second: float [B, E]; both have gradient.
        denominator: Videos in the global batch; None = B.

    Returns:
        float scalar in [0, 2]; 0 with zero gradient if B = 0. Adds up over ranks and micro-batches.
    """
    cosines = functional.cosine_similarity(full_precision(first), full_precision(second), dim=-1)
    return divide((1 - cosines).sum(), denominator, cosines.shape[0])
