"""Masked language and masked frame modelling, on rows that were selected before the head.

Legend: M masked rows, V vocabulary, N candidate frames, D width of a frame.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from .reduction import Denominator, divide, full_precision, no_autocast


def masked_token(logits: Tensor, labels: Tensor, denominator: Denominator = None) -> Tensor:
    """Cross-entropy of the masked tokens, mean over them, in nats (BERT, arXiv 1810.04805 §3.1).

    Args:
        logits: float [M, V], of the masked rows only; the softmax is float32.
        labels: int64 [M], the tokens before masking.
        denominator: Masked tokens in the global batch; None = M.

    Returns:
        float scalar; 0 with zero gradient if M = 0. Adds up over ranks and micro-batches.
    """
    total = functional.cross_entropy(full_precision(logits), labels, reduction="sum")
    return divide(total, denominator, labels.shape[0])


def masked_frame(
    predictions: Tensor,
    candidates: Tensor,
    positives: Tensor,
    *,
    normalize: bool = False,
    temperature: float = 1.0,
    denominator: Denominator = None,
) -> Tensor:
    """Noise-contrastive choice of the masked frame among the candidates, mean over masked frames, in nats.

    `-log softmax_n(prediction_m . candidate_n / temperature)[positives_m]`. Negatives: every other candidate,
    near duplicates of the same video included (arXiv 2111.01677 §2.2, as its code does it: raw dot product).
    Only [M, N] products are made, never those of the unmasked rows. The value depends on the set of
    candidates: give every rank the frames of the whole global batch and it does not depend on the world size.

    Args:
        predictions: float [M, D], head outputs at the masked positions.
        candidates: float [N, D], frames before masking; input data, so they need no gradient.
        positives: int64 [M], the candidate that stood at each masked position.
        normalize: Compare directions only: both sides are L2-normalised first.
        temperature: > 0; with `normalize` about .07 is usual.
        denominator: Masked frames in the global batch; None = M.

    Returns:
        float scalar; 0 with zero gradient if M = 0. Adds up over ranks and micro-batches.
    """
    with no_autocast(predictions):
        predictions = full_precision(predictions)
        candidates = candidates.to(predictions)
        if normalize:
            predictions, candidates = (
                functional.normalize(predictions, dim=-1),
                functional.normalize(candidates, dim=-1),
            )
        if predictions.shape[0] == 0:  # a softmax over no candidates would have no value
            return predictions.sum() * 0.0
        logits = predictions @ candidates.T / temperature
        total = functional.cross_entropy(logits, positives, reduction="sum")
    return divide(total, denominator, positives.shape[0])
