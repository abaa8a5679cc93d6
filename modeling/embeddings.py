"""Streams and words to one input sequence of the text encoder.

Legend: B videos, T text tokens, F vectors of a stream, D their width, S = T + all F, W width of a word
embedding.

Decisions, all here:

- The text encoder is called by `inputs_embeds`; it adds its own position and type embeddings and LayerNorm.
- Text is one stream with positions 0 … T-1 ([CLS] is 0); every other stream starts again at 0. A stream has
  its own position table too, which the text encoder's positions do not replace.
- Streams follow each other in the order of the configuration, frames first, without separators; one learned
  modality embedding each tells them apart. Text has none: its words are what the text encoder knows.
- Token types are left at the encoder's default (0 everywhere): several encoders have one type only, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn


class StreamEmbedding(nn.Module):
    """Vectors of one stream to vectors that stand for words: Linear, position, modality, LayerNorm.

    Source: the second embedding table of the winning AIAC 2021 system, here without its unused word table.

    Args:
        dim: Width D of a vector.
        max_length: Rows of the position table.
        width: Width W of a word embedding.
        layer_norm_eps: Of the LayerNorm.
    """

    def __init__(self, dim: int, max_length: int, width: int, layer_norm_eps: float) -> None:
        """Build the tables."""
        super().__init__()
        self.projection = nn.Linear(dim, width)
        self.position = nn.Embedding(max_length, width)
        self.modality = nn.Embedding(1, width)
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embed.

        Args:
            features: float [B, F, D]; what lies at masked positions is never looked at, be it NaN.
            mask: bool [B, F], True = real vector.

        Returns:
            float [B, F, W].
        """
        features = torch.where(mask.unsqueeze(-1), features, 0).to(self.projection.weight.dtype)
        positions = self.position.weight[: features.shape[1]]
        return self.norm(self.projection(features) + positions + self.modality.weight)

    def empty(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [B, 0, D] and mask [B, 0] of a batch without this stream.

        Run through `forward`, they give every parameter a gradient of zeros instead of none, which
        DistributedDataParallel would refuse.
        """
        weight = self.projection.weight
        features = weight.new_zeros(batch_size, 0, weight.shape[1])
        return features, torch.zeros(batch_size, 0, dtype=torch.bool, device=weight.device)


@dataclass(frozen=True)
class InputSequence:
    """What goes into the text encoder, and where its parts lie.

    Attributes:
        embeds: float [B, S, W].
        mask: bool [B, S], True = real position.
        position_ids: int64 [S], the same for each row.
        num_before: Text tokens before the streams: 1 (`cls_first`) or 0 (`text_cls`).
        lengths: Stream to its F, in the order of the sequence.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor
    num_before: int
    lengths: dict[str, int]

    def compact(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move the real positions of each row to its front, in their order.

        Encoders that look at the distance of two indices (local attention, relative positions) then see no
        gap where a short row was padded between its frames and its text. Nothing waits for the device.

        Returns:
            Compacted embeds [B, S, W], mask [B, S] and position ids [B, S], and `back` int64 [B * S]: the
            row-major place that each original position has in the compacted batch.
        """
        batch_size, length = self.mask.shape
        order = torch.argsort(self.mask.to(torch.uint8), dim=1, descending=True, stable=True)
        starts = length * torch.arange(batch_size, device=order.device).unsqueeze(1)
        front = (order + starts).flatten()
        back = (torch.argsort(order, dim=1) + starts).flatten()
        mask = self.mask.flatten().index_select(0, front).view(batch_size, length)
        return take_rows(self.embeds, front), mask, self.position_ids[order], back

    def split(self, hidden: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Take the hidden states float [B, S, H] apart: text [B, T, H], and each stream [B, F, H]."""
        num_after = hidden.shape[1] - self.num_before - sum(self.lengths.values())
        before, *streams, after = hidden.split([self.num_before, *self.lengths.values(), num_after], dim=1)
        return torch.cat([before, after], dim=1), dict(zip(self.lengths, streams, strict=True))


def take_rows(x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """Rearrange the vectors of float [B, S, H] by row-major places int64 [B * S]."""
    return x.flatten(0, 1).index_select(0, flat).view_as(x)


def build_sequence(
    words: torch.Tensor,
    text_mask: torch.Tensor,
    streams: dict[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    num_before: int,
    first_position: int,
) -> InputSequence:
    """Put the streams into the text.

    Args:
        words: float [B, T, W], raw word embeddings.
        text_mask: bool [B, T].
        streams: Embedded vectors float [B, F, W] and mask bool [B, F] of each stream.
        num_before: Text tokens before the streams.
        first_position: Position id of a stream's first vector; RoBERTa's tables start after the padding id.

    Returns:
        The sequence; padded positions are still where the parts were put together.
    """
    device = words.device
    vectors = [vectors.to(words.dtype) for vectors, _ in streams.values()]
    masks = [mask for _, mask in streams.values()]
    lengths = {name: mask.shape[1] for name, (_, mask) in streams.items()}
    text_positions = torch.arange(words.shape[1], device=device)
    positions = [torch.arange(length, device=device) for length in lengths.values()]
    order = torch.cat([text_positions[:num_before], *positions, text_positions[num_before:]])
    return InputSequence(
        embeds=torch.cat([words[:, :num_before], *vectors, words[:, num_before:]], dim=1),
        mask=torch.cat([text_mask[:, :num_before], *masks, text_mask[:, num_before:]], dim=1),
        position_ids=order + first_position,
        num_before=num_before,
        lengths=lengths,
    )


def checked_vectors(name: str, streams: Mapping[str, torch.Tensor], dim: int) -> torch.Tensor:
    """A stream of one vector a video, float [B, dim].

    Raises:
        ValueError: It is missing or of another width.
    """
    if name not in streams or streams[name].ndim != 2 or streams[name].shape[1] != dim:
        got = list(streams[name].shape) if name in streams else "nothing"
        raise ValueError(f"stream {name}: [B, {dim}] expected, got {got}")
    return streams[name]


def checked_stream(
    name: str,
    features: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    batch_size: int,
    dim: int,
    max_length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float [B, F, D] and mask bool [B, F] of a stream, if their shapes are possible.

    Raises:
        ValueError: They are not; names the stream and both shapes.
    """
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[0] != batch_size or shape[2] != dim or shape[1] > max_length:
        raise ValueError(f"stream {name!r} has shape {shape}, expected ({batch_size}, at most {max_length}, {dim})")
    if mask is None:
        return features, torch.ones(shape[:2], dtype=torch.bool, device=features.device)
    if mask.shape != features.shape[:2]:
        raise ValueError(f"stream {name!r} has shape {shape}, but its mask has {tuple(mask.shape)}")
    return features, mask.bool()
