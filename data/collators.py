"""Rows to batches: plain tensors under the keys of `schema.py`.

Legend: B videos in a batch, T text tokens, F frames, D width of a frame feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from vidsim.data import schema
from vidsim.data.arrow import Videos
from vidsim.data.masking import MaskingConfig, mask_frames, mask_tokens, row_keys
from vidsim.data.samplers import RowKey
from vidsim.data.tags import TagVocabulary

Batch = dict[str, Any]
_FRAME_FEATURES = schema.feature_key(schema.FRAMES)


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
        `input_ids`, `attention_mask` int64 [B, T]; for each stream features float [B, F, D] and mask
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
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[RowKey]) -> list[dict[str, Any]]:
        """The rows of a batch, read at once; torch's data loader asks so, too."""
        rows = self.videos.read([row for _, row in keys])
        return [{**row, "epoch": epoch} for row, (epoch, _) in zip(rows, keys, strict=True)]

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
        self.mask_token_id = int(tokenizer.mask_token_id)
        self.vocab_size = len(tokenizer)
        self.is_special = np.zeros(self.vocab_size, dtype=bool)  # by token id
        self.is_special[tokenizer.all_special_ids] = True

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Encode and mask.

        Returns:
            What `encode_rows` returns, and `mlm_labels` int64 [B, T], `mlm_positions` int64 [M] into B·T,
            `mfm_labels` bool [B, F], `mfm_positions` and `frame_positions` int64 into B·F, `mfm_targets`
            float [B, F, D], ragged `tag_ids` and `tag_rows`, `has_tags` bool [B].
        """
        batch = encode_rows(rows, self.processor)
        keys = row_keys(self.seed, [row["epoch"] for row in rows], batch[schema.ROW_IDS])
        if self.mask_text:
            self._mask_text(batch, keys)
        if self.mask_frames and batch.get(_FRAME_FEATURES) is not None:
            self._mask_frames(batch, keys)
        if self.tags is not None:
            self.add_tags(batch, rows, self.tags)
        return batch

    def _mask_text(self, batch: Batch, keys: npt.NDArray[np.uint64]) -> None:
        ids = batch[schema.INPUT_IDS].numpy()
        masked, labels = mask_tokens(
            ids,
            (batch[schema.ATTENTION_MASK].numpy() == 1) & ~self.is_special[ids],
            keys,
            mask_token_id=self.mask_token_id,
            vocab_size=self.vocab_size,
            config=self.masking,
        )
        batch[schema.INPUT_IDS] = torch.from_numpy(masked)
        batch[schema.MLM_LABELS] = torch.from_numpy(labels)
        batch["mlm_positions"] = torch.from_numpy(np.flatnonzero(labels != schema.IGNORE_INDEX))

    def _mask_frames(self, batch: Batch, keys: npt.NDArray[np.uint64]) -> None:
        frame_mask = batch[schema.mask_key(schema.FRAMES)].numpy() == 1
        zeroed, predicted = mask_frames(frame_mask, keys, config=self.masking)
        features: torch.Tensor = batch[_FRAME_FEATURES]
        batch[schema.MFM_TARGETS] = features
        batch[_FRAME_FEATURES] = features.clone()
        batch[_FRAME_FEATURES].flatten(0, 1).index_fill_(0, torch.from_numpy(np.flatnonzero(zeroed)), 0.0)
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
