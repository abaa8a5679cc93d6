"""Heads: hidden states to embeddings, word logits, frames and tag logits.

Legend: N rows, H width of the hidden states, W width of a word embedding, V words, D width of a frame,
E width of the embedding. Fresh weights are normal with standard deviation 0.02, biases 0, as in BERT.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_INITIALIZER_RANGE = 0.02


def _init_linear(linear: nn.Linear) -> nn.Linear:
    nn.init.normal_(linear.weight, std=_INITIALIZER_RANGE)
    nn.init.zeros_(linear.bias)
    return linear


class EmbeddingHead(nn.Module):
    """Pooled hidden state to the embedding: Linear, then L2 normalisation in float32.

    Args:
        hidden_size: Width H.
        embedding_dim: Width E.
    """

    def __init__(self, hidden_size: int, embedding_dim: int) -> None:
        """Build the projection."""
        super().__init__()
        self.projection = _init_linear(nn.Linear(hidden_size, embedding_dim))

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project and normalise.

        Args:
            pooled: float [N, H].

        Returns:
            Embedding float32 [N, E] of length 1, and the projection [N, E] before normalisation, which the
            winner's jobs 2 and 3 feed to their tag head.
        """
        projected = self.projection(pooled.to(self.projection.weight.dtype))
        return F.normalize(projected.float(), dim=-1), projected


class MlmHead(nn.Module):
    """Masked language modelling: dense, gelu, LayerNorm, then the word-embedding table as decoder.

    The table is an argument of `forward`, so the decoder is tied by construction: there is no second copy to
    save, to load or to keep equal.

    Args:
        hidden_size: Width H.
        embedding_size: Width W of a word embedding (not H in ELECTRA and ALBERT).
        vocab_size: Words V.
        layer_norm_eps: Of the LayerNorm.
    """

    def __init__(self, hidden_size: int, embedding_size: int, vocab_size: int, layer_norm_eps: float = 1e-12) -> None:
        """Build the transform."""
        super().__init__()
        self.dense = _init_linear(nn.Linear(hidden_size, embedding_size))
        self.norm = nn.LayerNorm(embedding_size, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """Score every word.

        Args:
            hidden: float [N, H], hidden states of the masked tokens only.
            word_embeddings: float [V, W], the encoder's table.

        Returns:
            Logits [N, V].
        """
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word_embeddings, self.bias)


class MfmHead(nn.Module):
    """Masked frame modelling: dense, gelu, LayerNorm, Linear to the width of a frame.

    Source: the winning AIAC 2021 system (arXiv 2111.01677), whose head has these layers.

    Args:
        hidden_size: Width H.
        frame_dim: Width D of a frame.
        layer_norm_eps: Of the LayerNorm.
    """

    def __init__(self, hidden_size: int, frame_dim: int, layer_norm_eps: float = 1e-12) -> None:
        """Build the layers."""
        super().__init__()
        self.dense = _init_linear(nn.Linear(hidden_size, hidden_size))
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.decoder = _init_linear(nn.Linear(hidden_size, frame_dim))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Predict frames.

        Args:
            hidden: float [N, H], hidden states of the masked frames only.

        Returns:
            float [N, D].
        """
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class TagHead(nn.Module):
    """Video tag classification: Linear over relu(x).

    Args:
        in_features: Width of the input: H for the [CLS] state, E for the projection (jobs 2 and 3).
        num_tags: Size of the tag vocabulary.
    """

    def __init__(self, in_features: int, num_tags: int) -> None:
        """Build the classifier."""
        super().__init__()
        self.classifier = _init_linear(nn.Linear(in_features, num_tags))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score every tag.

        Args:
            x: float [N, in_features].

        Returns:
            Logits [N, num_tags].
        """
        return self.classifier(F.relu(x))
