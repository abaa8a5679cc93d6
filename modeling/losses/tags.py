"""Video tag classification: which of the known tags does a video carry?

Either one yes/no question per tag (`tag_bce`, the published winner: arXiv 2111.01677 §2.2) or one choice per
given tag among all others (`sampled_softmax`, the third place's: +.047 Spearman over the sigmoid in its
ablation).

Legend: B videos, K or V tags, P (video, tag) pairs in the batch, S sampled negatives, H width.
Tags come ragged: pair p says that video `tag_rows[p]` carries tag `tag_ids[p]`; every pair stands once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .reduction import Denominator, divide, full_precision, no_autocast

_MASKED_LOGIT = -1e30  # finite, so that a row with every candidate masked has a gradient (zero) and not NaN


def tag_bce(
    logits: Tensor,
    tag_ids: Tensor,
    tag_rows: Tensor,
    has_tags: Tensor | None = None,
    denominator: Denominator = None,
) -> Tensor:
    """Multi-label binary cross-entropy with logits, mean over (videos with tags) x K, in nats.

    `sum_b sum_k [softplus(x_bk) - x_bk y_bk] / (denominator * K)`, where y is 1 for the pairs given. No dense
    target is built: the second term is a gather. A video that has tags, none of which is known, is all
    negatives.

    Args:
        logits: float [B, K].
        tag_ids: int64 [P], in 0..K-1.
        tag_rows: int64 [P], in 0..B-1.
        has_tags: bool [B], False = the video takes no part; None = all take part.
        denominator: Videos with tags in the global batch; None = in this call. K is divided by as well.

    Returns:
        float scalar; 0 with zero gradient if no video has tags. Adds up over ranks and micro-batches.
    """
    logits = full_precision(logits)
    per_video = functional.softplus(logits).sum(dim=1)
    given = logits[tag_rows, tag_ids]
    count: Tensor | float = logits.shape[0]
    if has_tags is not None:
        has_tags = has_tags.bool()
        per_video = per_video.masked_fill(~has_tags, 0.0)
        given = given.masked_fill(~has_tags[tag_rows], 0.0)
        count = has_tags.sum()
    return divide(per_video.sum() - given.sum(), denominator, count) / logits.shape[1]


def sampled_softmax(
    query: Tensor,
    tag_embedding: Tensor,
    bias: Tensor | None,
    tag_ids: Tensor,
    tag_rows: Tensor,
    negatives: Tensor | None = None,
    has_tags: Tensor | None = None,
    denominator: Denominator = None,
) -> Tensor:
    """Softmax cross-entropy of each given tag against the tags the video does not carry, mean over the pairs.

    `-log[ exp(s_t) / (exp(s_t) + Z_b) ]` with `s_k = query_b . tag_embedding_k + bias_k` and `Z_b` the sum of
    `exp(s_k)` over all tags that video b does not carry; its other tags are neither target nor negative. With
    `negatives`, `Z_b` is estimated from S draws of `sample_log_uniform` as `sum exp(s_n - log(S Q(n)))`
    (importance sampling, unbiased; Bengio and Senecal 2008), a drawn tag that the video carries counting as
    0. The given tag itself is not corrected: it is always in the sum. (TensorFlow's function of this name
    corrects it too; that learns the same scores up to a constant per video, but its value does not tend to
    the full softmax.)

    Args:
        query: float [B, H], one vector per video.
        tag_embedding: float [V, H], one vector per tag, most frequent tag first.
        bias: float [V] or None.
        tag_ids: int64 [P], in 0..V-1.
        tag_rows: int64 [P], in 0..B-1.
        negatives: int64 [S] from `sample_log_uniform`, with repeats, the same for every rank and micro-batch
            of a step; None = all V tags, exact.
        has_tags: bool [B], False = the video takes no part; None = all take part.
        denominator: Pairs of videos that take part in the global batch; None = in this call.

    Returns:
        float scalar in nats; 0 with zero gradient without pairs. Adds up over ranks and micro-batches.
    """
    with no_autocast(query):
        query, tag_embedding = full_precision(query), full_precision(tag_embedding)
        bias = query.new_zeros(tag_embedding.shape[0]) if bias is None else full_precision(bias)
        given = (query[tag_rows] * tag_embedding[tag_ids]).sum(dim=1) + bias[tag_ids]  # [P]
        if negatives is None:
            others = query @ tag_embedding.T + bias  # [B, V]
            carried = torch.zeros_like(others, dtype=torch.bool)
            carried[tag_rows, tag_ids] = True
        else:
            log_count = log_uniform_log_probability(negatives, tag_embedding.shape[0]) + math.log(len(negatives))
            others = query @ tag_embedding[negatives].T + (bias[negatives] - log_count)  # [B, S]
            hits = (tag_ids[:, None] == negatives[None, :]).to(others)  # [P, S]
            carried = torch.zeros_like(others).index_add(0, tag_rows, hits) > 0
        log_partition = others.masked_fill(carried, _MASKED_LOGIT).logsumexp(dim=1)  # [B]
        per_pair = functional.softplus(log_partition[tag_rows] - given)
    count: Tensor | float = per_pair.shape[0]
    if has_tags is not None:
        takes_part = has_tags.bool()[tag_rows]
        per_pair = per_pair.masked_fill(~takes_part, 0.0)
        count = takes_part.sum()
    return divide(per_pair.sum(), denominator, count)


def log_uniform_log_probability(tag_ids: Tensor, num_tags: int) -> Tensor:
    """Log of the log-uniform law `Q(k) = log((k + 2) / (k + 1)) / log(V + 1)`: float32, same shape.

    Q sums to 1 over k = 0..V-1: Zipf's law for tags sorted by falling frequency.
    """
    k = tag_ids.to(torch.float64)
    return (torch.log(torch.log1p(1 / (k + 1))) - math.log(math.log(num_tags + 1))).to(torch.float32)


def sample_log_uniform(num_samples: int, num_tags: int, generator: torch.Generator) -> Tensor:
    """Draw tags, with repeats, from the log-uniform law: int64 [num_samples], on the generator's device.

    Args:
        num_samples: S; the third place drew 1000.
        num_tags: V.
        generator: Seeded from (seed, step) only, so that every rank draws the same and a resumed run repeats
            it.
    """
    uniform = torch.rand(num_samples, generator=generator, dtype=torch.float64, device=generator.device)
    drawn = torch.exp(uniform * math.log(num_tags + 1)).long() - 1  # inverse of the cumulative law
    return drawn.clamp(0, num_tags - 1)  # rounding at the upper end
