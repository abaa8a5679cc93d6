"""From a pretraining batch to what an objective works on: masked rows, valid frames, inputs before masking.

Legend: B rows, T tokens, F frames, D width of a frame, M masked items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import FRAMES, VidsimConfig, stream_keys

Batch = Mapping[str, Any]
"""Batch keys -> tensors, as the collator makes them."""

IGNORE_INDEX = -100  # in `mlm_labels`: this token is not predicted


def frame_positions(batch: Batch) -> Tensor:
    """Flat indices into B * F of the valid frames, rising: int64 [n].

    From the collator, or found here, which waits for the device; so with the other positions.
    """
    if "frame_positions" in batch:
        return _tensor(batch["frame_positions"])
    return _found(batch["frame_mask"])


def mlm_positions(batch: Batch) -> Tensor:
    """Flat indices into B * T of the masked tokens: int64 [M]."""
    if "mlm_positions" in batch:
        return _tensor(batch["mlm_positions"])
    return _found(batch["mlm_labels"] != IGNORE_INDEX)


def mfm_positions(batch: Batch) -> Tensor:
    """Flat indices into B * F of the masked frames: int64 [M]."""
    if "mfm_positions" in batch:
        return _tensor(batch["mfm_positions"])
    return _found(batch["mfm_labels"])


def valid_frames(batch: Batch) -> Tensor:
    """The valid frames before masking, by row and time: float32 [n, D]."""
    return clean_frames(batch).flatten(0, 1)[frame_positions(batch)].float()


def clean_frames(batch: Batch) -> Tensor:
    """Frames before masking: float [B, F, D].

    Raises:
        ValueError: The batch has no frames at all.
    """
    frames = batch.get("mfm_targets", batch.get("frame_features"))
    if frames is None:
        raise ValueError(f"an objective needs frames, but the batch has only {sorted(batch)}")
    return _tensor(frames)


def clean_ids(batch: Batch) -> Tensor:
    """Text ids before masking: int64 [B, T]; every masked token stands in the labels."""
    ids = _tensor(batch["input_ids"])
    if "mlm_labels" not in batch:
        return ids
    return torch.where(batch["mlm_labels"] == IGNORE_INDEX, ids, batch["mlm_labels"])


def stream_inputs(batch: Batch, streams: Iterable[str]) -> dict[str, Tensor]:
    """Features and mask of every stream in the batch, as the encoder saw them."""
    keys = [key for stream in streams for key in stream_keys(stream)]
    return {key: batch[key] for key in keys if batch.get(key) is not None}


def rows_with_both(batch: Batch, config: VidsimConfig) -> Tensor:
    """Rows that have at least one frame and at least one token of text: bool [B]."""
    num_special = 3 if config.layout == "cls_first" else 2  # an empty speech text adds no [SEP]
    has_text = batch["attention_mask"].sum(dim=1) > num_special
    mask_key = stream_keys(FRAMES)[1]
    return _tensor(has_text & (batch[mask_key] != 0).any(dim=1))


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"the batch holds {type(value).__name__} where a tensor is needed")
    return value


def _found(chosen: Tensor) -> Tensor:
    return torch.nonzero(chosen.flatten()).flatten()
