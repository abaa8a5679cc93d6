"""How many positions each video takes in the encoder: counted once for a run, then mapped from a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vidsim.common.files import atomic_path
from vidsim.common.progress import progress
from vidsim.data import schema
from vidsim.data.arrow import Videos
from vidsim.data.collators import Processor

_CHUNK = 2048  # rows tokenised at once


class CountedProcessor(Processor, Protocol):
    """The settings of `modeling.processor.VideoTextProcessor` that lengths follow from."""

    layout: str
    max_title_tokens: int
    max_asr_tokens: int
    use_text: bool
    use_frames: bool


def token_counts(videos: Videos, processor: CountedProcessor, folder: Path) -> npt.NDArray[np.int32]:
    """Text tokens, special ones included, plus vectors of all streams, each as the processor cuts them.

    Args:
        videos: All rows of a run.
        processor: Of the run.
        folder: Holds the counts as `token_counts-<fingerprint>.npy`, for these videos, tokenizer and limits.

    Returns:
        int32 [number of videos], memory-mapped.
    """
    path = folder / f"token_counts-{_fingerprint(videos, processor)}.npy"
    if not path.is_file():
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, _count(videos, processor), allow_pickle=False)
    counts: npt.NDArray[np.int32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return counts


def _count(videos: Videos, processor: CountedProcessor) -> npt.NDArray[np.int32]:
    counts = np.zeros(len(videos), dtype=np.int32)
    for name, sizes in processor.streams.items():
        if name in videos.streams and (processor.use_frames or name != schema.FRAMES):
            counts += np.minimum(videos.column(schema.count_column(name)).to_numpy(), sizes["max_length"])
    titles, asrs = videos.column(schema.TITLE), videos.column(schema.ASR)
    for start in progress(range(0, len(videos), _CHUNK), desc="counting tokens", unit="chunk"):
        part = slice(start, start + _CHUNK)
        batch = processor(titles[part].to_pylist(), asrs[part].to_pylist())
        counts[part] += batch[schema.ATTENTION_MASK].numpy().sum(1, dtype=np.int32)
    return counts


def _fingerprint(videos: Videos, processor: CountedProcessor) -> str:
    tokenizer: dict[str, Any] = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    # What the last call happened to set.
    tokenizer.pop("truncation", None)
    tokenizer.pop("padding", None)
    streams = {name: sizes["max_length"] for name, sizes in processor.streams.items()}
    settings = [processor.layout, processor.max_title_tokens, processor.max_asr_tokens]
    parts = [videos.fingerprint(), tokenizer, streams, settings, processor.use_text, processor.use_frames]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
