"""Rows to batches: plain tensors under the keys of `schema.py`.

Legend: B videos in a batch, T text tokens, F frames, D width of a frame feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from vidsim.data import schema
from vidsim.data.arrow import Videos
from vidsim.data.masking import MaskingConfig, mask_frames, mask_tokens, row_generator
from vidsim.data.samplers import RowKey
from vidsim.data.tags import TagVocabulary

Batch = dict[str, Any]


class Processor(Protocol):
    """What a collator needs of `modeling.processor.VideoTextProcessor`."""

    tokenizer: Any

    @property
    def streams(self) -> Mapping[str, Any]:
        """What is read, by the stream's name."""

    def __call__(
        self,
        titles: Sequence[str],
        asrs: Sequence[str] | None = None,
        frames: Sequence[np.ndarray] | None = None,
        **streams: Any,
    ) -> dict[str, torch.Tensor]:
        """Rows' parts to tensors."""


def encode_rows(rows: Sequence[dict[str, Any]], processor: Processor) -> Batch:
    """Encode video rows without masking; streams that the processor does not read are left out.

    Returns:
        `input_ids`, `attention_mask` int64 [B, T]; for each stream features float32 [B, F, D] and mask
        int64 [B, F]; `row_ids`, list of B strings.
    """
    streams = {name: [row[name] for row in rows] for name in processor.streams if name in rows[0]}
    batch: Batch = dict(processor([row[schema.TITLE] for row in rows], [row[schema.ASR] for row in rows], **streams))
    batch[schema.ROW_IDS] = [row[schema.ID] for row in rows]
    return batch


class VideoRows(Dataset[dict[str, Any]]):
    """Rows of a data set by (epoch, row), so that a worker needs no state to know the epoch."""

    def __init__(self, videos: Videos) -> None:
        """Wrap memory-mapped videos."""
        self.videos = videos

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        """A video row with its `epoch`."""
        epoch, row = key
        return {**self.videos[row], "epoch": epoch}

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.videos)


class PretrainCollator:
    """Video rows to a masked batch for VTC, MLM and MFM.

    Args:
        processor: Tokenises, pads and samples frames.
        tags: Tag vocabulary, or None without VTC.
        masking: Shares that are hidden.
        seed: Seed of the run.
        mask_text: Whether MLM is trained; otherwise text stays whole.
        mask_frames: Whether MFM is trained; otherwise frames stay whole.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        tags: TagVocabulary | None,
        masking: MaskingConfig,
        seed: int,
        mask_text: bool = True,
        mask_frames: bool = True,
    ) -> None:
        """Look up the special tokens once."""
        self.processor = processor
        self.tags = tags
        self.masking = masking
        self.seed = seed
        self.mask_text = mask_text
        self.mask_frames = mask_frames
        tokenizer = processor.tokenizer
        self.special_ids = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
        self.mask_token_id = int(tokenizer.mask_token_id)
        self.vocab_size = len(tokenizer)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Encode and mask.

        Returns:
            What `encode_rows` returns, and `mlm_labels` int64 [B, T], `mlm_positions` int64 [M] into B·T,
            `mfm_labels` bool [B, F], `mfm_positions` and `frame_positions` int64 into B·F,
            `mfm_targets` float32 [B, F, D], ragged `tag_ids` and `tag_rows`, `has_tags` bool [B].
        """
        batch = encode_rows(rows, self.processor)
        generators = [row_generator(self.seed, row["epoch"], row[schema.ID]) for row in rows]
        if self.mask_text:
            self._mask_text(batch, generators)
        features_key = schema.feature_key(schema.FRAMES)
        if self.mask_frames and batch.get(features_key) is not None:
            self._mask_frames(batch, generators, features_key)
        if self.tags is not None:
            self.add_tags(batch, rows, self.tags)
        return batch

    def _mask_text(self, batch: Batch, generators: list[np.random.Generator]) -> None:
        ids = batch[schema.INPUT_IDS].numpy()
        lengths = batch[schema.ATTENTION_MASK].sum(1).tolist()
        labels = np.full_like(ids, schema.IGNORE_INDEX)
        maskable = ~np.isin(ids, self.special_ids)
        masked_ids = ids.copy()
        for row, (generator, length) in enumerate(zip(generators, lengths, strict=True)):
            masked_ids[row, :length], labels[row, :length] = mask_tokens(
                ids[row, :length],
                maskable[row, :length],
                mask_token_id=self.mask_token_id,
                vocab_size=self.vocab_size,
                config=self.masking,
                generator=generator,
            )
        batch[schema.INPUT_IDS] = torch.from_numpy(masked_ids)
        batch[schema.MLM_LABELS] = torch.from_numpy(labels)
        batch["mlm_positions"] = torch.from_numpy(np.flatnonzero(labels != schema.IGNORE_INDEX))

    def _mask_frames(self, batch: Batch, generators: list[np.random.Generator], features_key: str) -> None:
        features: torch.Tensor = batch[features_key]
        frame_mask = batch[schema.mask_key(schema.FRAMES)].numpy().astype(bool)
        zeroed = np.zeros_like(frame_mask)
        predicted = np.zeros_like(frame_mask)
        for row, (generator, length) in enumerate(zip(generators, frame_mask.sum(1).tolist(), strict=True)):
            zeroed[row, :length], predicted[row, :length] = mask_frames(
                length, config=self.masking, generator=generator
            )
        batch[schema.MFM_TARGETS] = features
        batch[features_key] = features.masked_fill(torch.from_numpy(zeroed)[..., None], 0.0)
        batch[schema.MFM_LABELS] = torch.from_numpy(predicted)
        batch["mfm_positions"] = torch.from_numpy(np.flatnonzero(predicted))
        batch["frame_positions"] = torch.from_numpy(np.flatnonzero(frame_mask))

    @staticmethod
    def add_tags(batch: Batch, rows: Sequence[dict[str, Any]], tags: TagVocabulary) -> None:
        """Add `tag_ids`, `tag_rows` and `has_tags` of video rows to their batch."""
        encoded = [tags.encode(row[schema.TAGS]) for row in rows]
        batch[schema.TAG_IDS] = torch.tensor([tag for ids in encoded for tag in ids], dtype=torch.int64)
        batch[schema.TAG_ROWS] = torch.tensor(
            [index for index, ids in enumerate(encoded) for _ in ids], dtype=torch.int64
        )
        # A row without any tag is unlabelled (test rows of the competition); it must not teach "no tag fits".
        batch[schema.HAS_TAGS] = torch.tensor([bool(row[schema.TAGS]) for row in rows])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch; lists stay."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
