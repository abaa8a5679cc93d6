from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.data.arrow import open_videos
from vidsim.data.token_counts import token_counts
from vidsim.data.tokenization import load_tokenizer
from vidsim.modeling.processor import VideoTextProcessor


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sea", "sun"]) + "\n", encoding="utf-8")
    return path


def processor(vocabulary: Path, **settings: Any) -> VideoTextProcessor:
    sizes = {"streams": {"frames": {"dim": 4, "max_length": 4}}, "max_title_tokens": 6, **settings}
    return VideoTextProcessor(load_tokenizer(vocabulary), **sizes)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_asr_tokens": 1},
        {"layout": "text_cls", "padding": "max_length"},
        {"use_text": False},
        {"use_frames": False},
        {"streams": {}},
    ],
)
def test_counts_are_the_masks_of_the_batch(
    write_data_set: Any, rows: list[dict[str, Any]], vocabulary: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    videos = open_videos(write_data_set(rows, num_shards=3))
    made = processor(vocabulary, **settings)
    counts = token_counts(videos, made, tmp_path)
    assert counts.dtype == np.int32
    for count, row in zip(counts.tolist(), rows, strict=True):
        frames = [row["frames"]] if made.streams else None
        batch = made([row["title"]], [row["asr"]], frames)
        assert count == batch["attention_mask"].sum() + (batch["frame_mask"].sum() if made.streams else 0)


def test_they_are_counted_once(
    write_data_set: Any, rows: list[dict[str, Any]], vocabulary: Path, tmp_path: Path
) -> None:
    """A run that goes on maps the file, whatever its tokenizer was used for; other limits get another file."""
    videos = open_videos(write_data_set(rows))
    made = processor(vocabulary)
    token_counts(videos, made, tmp_path)
    (path,) = tmp_path.glob("token_counts-*.npy")
    np.save(path, np.arange(7, dtype=np.int32))
    made(["sea sun"], ["sea"], [np.ones((2, 4))])
    again = token_counts(open_videos(videos.folders[0]), made, tmp_path)
    assert isinstance(again, np.memmap)
    assert again.tolist() == list(range(7))
    assert token_counts(videos, processor(vocabulary), tmp_path).tolist() == list(range(7))
    for other in ({"max_title_tokens": 5}, {"streams": {"frames": {"dim": 4, "max_length": 3}}}, {"use_text": False}):
        token_counts(videos, processor(vocabulary, **other), tmp_path)
    assert len(list(tmp_path.glob("token_counts-*.npy"))) == 4
    other_videos = open_videos(write_data_set(rows[1:], "other"))
    assert len(token_counts(other_videos, made, tmp_path)) == 6
