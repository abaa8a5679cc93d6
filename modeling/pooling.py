"""From the hidden states of a sequence to one vector.

Legend: B videos, S positions, H width.
"""

from __future__ import annotations

import torch
from torch import nn


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real positions.

    Args:
        hidden: float [B, S, H].
        mask: bool or int [B, S], 1 = real position.

    Returns:
        float32 [B, H]; 0 for a row without a real position.
    """
    weights = mask.to(torch.float32).unsqueeze(-1)
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class AttentionPooling(nn.Module):
    """Weighted mean with learned weights: Linear, tanh, Linear to one score, softmax over the positions.

    Source: the pooling of jobs 4 and 5 of the winning AIAC 2021 system, which had no mask.

    Args:
        hidden_size: Width H, also of the inner layer.
    """

    def __init__(self, hidden_size: int) -> None:
        """Build the two layers."""
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pool.

        Args:
            hidden: float [B, S, H].
            mask: bool or int [B, S], 1 = real position; None: every position counts, padding too.

        Returns:
            float32 [B, H].
        """
        scores = self.score(torch.tanh(self.dense(hidden))).squeeze(-1).float()
        if mask is not None:
            scores = scores.masked_fill(~mask.bool(), torch.finfo(scores.dtype).min)
        return (hidden.float() * scores.softmax(dim=1).unsqueeze(-1)).sum(dim=1)
