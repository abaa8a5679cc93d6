"""Column names, Arrow types and batch keys: the one place where a key is spelled.

Legend: B videos in a batch, T text tokens, F frames, D width of a frame feature.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"

# Columns of a video row.
ID: Final = "id"
TITLE: Final = "title"
ASR: Final = "asr"
TAGS: Final = "tags"
CATEGORY: Final = "category"
FRAMES: Final = "frames"  # the stream every data set has; others (`audio`) are named by the user

# Batch keys.
INPUT_IDS: Final = "input_ids"  # int64 [B, T]
ATTENTION_MASK: Final = "attention_mask"  # int64 [B, T], 1 = real token
MLM_LABELS: Final = "mlm_labels"  # int64 [B, T], IGNORE_INDEX = not predicted
MFM_LABELS: Final = "mfm_labels"  # bool [B, F], True = masked and to be predicted
MFM_TARGETS: Final = "mfm_targets"  # float [B, F, D], the frames before masking
TAG_IDS: Final = "tag_ids"  # int64 [tags in the batch], ragged
TAG_ROWS: Final = "tag_rows"  # int64 [tags in the batch], the batch row of each tag
HAS_TAGS: Final = "has_tags"  # bool [B], False = this row takes no part in VTC
ROW_IDS: Final = "row_ids"  # list[str], for error messages
IGNORE_INDEX: Final = -100


def count_column(stream: str) -> str:
    """Column that holds how many vectors a stream has: `num_frames`, `num_audio`."""
    return f"num_{stream}"


def feature_key(stream: str) -> str:
    """Batch key of a stream's vectors, float [B, F, D]: `frame_features`, `audio_features`."""
    return f"{stream.removesuffix('s')}_features"


def mask_key(stream: str) -> str:
    """Batch key of a stream's mask, int64 [B, F], 1 = real vector: `frame_mask`, `audio_mask`."""
    return f"{stream.removesuffix('s')}_mask"


def arrow_schema(streams: Iterable[str] = (FRAMES,)) -> pa.Schema:
    """Arrow schema of a video row. A stream is the C-order float16 bytes of `[n, D]` and its `n`."""
    fields = [
        pa.field(ID, pa.string()),
        pa.field(TITLE, pa.string()),
        pa.field(ASR, pa.string()),
        pa.field(TAGS, pa.list_(pa.string())),
        pa.field(CATEGORY, pa.int64()),
    ]
    for stream in streams:
        fields += [pa.field(stream, pa.binary()), pa.field(count_column(stream), pa.int32())]
    return pa.schema(fields)
