"""Rows to batches, with the processor that the encoder really uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidsim.data.arrow import open_videos
from vidsim.data.collators import PretrainCollator, VideoRows, encode_rows, to_device
from vidsim.data.masking import MaskingConfig
from vidsim.data.tags import TagVocabulary
from vidsim.data.tokenization import load_tokenizer
from vidsim.modeling.processor import VideoTextProcessor

PAD, UNK, CLS, SEP, MASK, SEA, SUN, CAT = range(8)
EVERYTHING = MaskingConfig(
    mlm_probability=1.0,
    mlm_mask_fraction=1.0,
    mlm_random_fraction=0.0,
    mfm_probability=1.0,
    mfm_zero_fraction=1.0,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nsea\nsun\ncat\n", encoding="utf-8")
    return load_tokenizer(path)


@pytest.fixture
def processor(tokenizer: Any) -> VideoTextProcessor:
    return VideoTextProcessor(tokenizer, streams={"frames": {"dim": 2, "max_length": 3}}, max_title_tokens=4)


def row(row_id: str, title: str, num_frames: int, *, tags: tuple[str, ...] = (), epoch: int = 0) -> dict[str, Any]:
    frames = (1 + np.arange(num_frames * 2).reshape(num_frames, 2)).astype(np.float16)
    return {
        "id": row_id,
        "title": title,
        "asr": "",
        "tags": list(tags),
        "category": 1,
        "frames": frames,
        "epoch": epoch,
    }


def collate(processor: VideoTextProcessor, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return PretrainCollator(processor, **{"tags": None, "masking": EVERYTHING, "seed": 0, **settings})(rows)


def test_encoding_by_hand(processor: VideoTextProcessor) -> None:
    batch = encode_rows([row("a", "sea sun", 2), row("b", "", 0)], processor)
    assert batch["row_ids"] == ["a", "b"]
    assert batch["input_ids"].tolist() == [[CLS, SEP, SEA, SUN, SEP], [CLS, SEP, SEP, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["frame_features"].tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]]]
    assert batch["frame_features"].is_floating_point()
    assert batch["frame_mask"].tolist() == [[1, 1], [0, 0]]


def test_streams_that_the_processor_does_not_read_are_left_out(tokenizer: Any, processor: VideoTextProcessor) -> None:
    rows = [{**row("a", "sea", 1), "audio": np.ones((2, 5), np.float16)}]
    assert set(encode_rows(rows, processor)) == {
        "input_ids",
        "attention_mask",
        "frame_features",
        "frame_mask",
        "row_ids",
    }
    text_only = VideoTextProcessor(tokenizer, streams={}, use_frames=False)
    assert set(encode_rows(rows, text_only)) == {"input_ids", "attention_mask", "row_ids"}


def test_every_token_masked_by_hand(processor: VideoTextProcessor) -> None:
    """Special tokens, padding and [UNK], of which nothing could be learned, are never masked."""
    batch = collate(processor, [row("a", "sea dog cat", 0), row("b", "sun", 0)])
    assert batch["input_ids"].tolist() == [[CLS, SEP, MASK, UNK, MASK, SEP], [CLS, SEP, MASK, SEP, PAD, PAD]]
    assert batch["mlm_labels"].tolist() == [[-100, -100, SEA, -100, CAT, -100], [-100, -100, SUN, -100, -100, -100]]
    assert batch["mlm_positions"].tolist() == [2, 4, 8]


def test_every_frame_masked_by_hand(processor: VideoTextProcessor) -> None:
    batch = collate(processor, [row("a", "", 1), row("b", "", 0), row("c", "", 3)])
    assert not batch["frame_features"].any()
    assert batch["mfm_targets"].tolist() == [
        [[1, 2], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[1, 2], [3, 4], [5, 6]],
    ]
    assert batch["mfm_labels"].tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert batch["mfm_positions"].tolist() == batch["frame_positions"].tolist() == [0, 6, 7, 8]


def test_predicted_frames_that_are_kept(processor: VideoTextProcessor) -> None:
    masking = MaskingConfig(mfm_probability=1.0, mfm_zero_fraction=0.0)
    batch = collate(processor, [row("a", "", 2)], masking=masking)
    assert batch["mfm_labels"].all()
    assert torch.equal(batch["frame_features"], batch["mfm_targets"])


def test_positions_agree_with_labels(processor: VideoTextProcessor) -> None:
    rows = [row(f"v{number}", "sea sun cat sea", number % 4) for number in range(40)]
    batch = collate(processor, rows, masking=MaskingConfig(mlm_probability=0.3, mfm_probability=0.3))
    for positions, chosen in (
        ("mlm_positions", batch["mlm_labels"] != -100),
        ("mfm_positions", batch["mfm_labels"]),
        ("frame_positions", batch["frame_mask"] == 1),
    ):
        assert batch[positions].tolist() == torch.nonzero(chosen.flatten()).flatten().tolist()
        assert len(batch[positions])
    zeroed = (batch["frame_features"] == 0).all(-1) & (batch["frame_mask"] == 1)
    assert (batch["mfm_labels"] | ~zeroed).all()


def test_a_mask_follows_seed_epoch_and_video_and_nothing_else(processor: VideoTextProcessor) -> None:
    half = MaskingConfig(mlm_probability=0.5, mfm_probability=0.5)
    title = "sea sun cat sea"

    def masks(index: int, rows: list[dict[str, Any]], **settings: Any) -> list[Any]:
        batch = collate(processor, rows, **{"masking": half, **settings})
        return [batch[key][index].tolist() for key in ("input_ids", "mlm_labels", "frame_features", "mfm_labels")]

    rows = [row(f"v{number}", title, 3) for number in range(8)]
    alone = [masks(0, [rows[number]]) for number in range(8)]
    assert [masks(number, rows) for number in range(8)] == alone
    assert masks(2, rows[::-1]) == alone[5]
    assert len({str(mask) for mask in alone}) > 4
    assert [masks(0, [{**rows[number], "epoch": 1}]) for number in range(8)] != alone
    assert [masks(0, [rows[number]], seed=1) for number in range(8)] != alone


def test_what_is_not_trained_is_not_masked(processor: VideoTextProcessor) -> None:
    rows = [row("a", "sea sun", 2)]
    batch = collate(processor, rows, mask_text=False, mask_frames=False)
    assert set(batch) == set(encode_rows(rows, processor))
    assert batch["input_ids"].tolist() == [[CLS, SEP, SEA, SUN, SEP]]
    assert batch["frame_features"].all()


def test_a_batch_without_any_frame(processor: VideoTextProcessor) -> None:
    batch = collate(processor, [row("a", "sea", 0), row("b", "", 0)])
    assert batch["mfm_targets"].shape == (2, 0, 2)
    assert batch["mfm_positions"].tolist() == batch["frame_positions"].tolist() == []


def test_tags_by_hand(processor: VideoTextProcessor) -> None:
    """Tags outside the vocabulary leave a row without positives; only a row without any tag takes no part."""
    tags = TagVocabulary(("red", "blue", "green"))
    rows = [row("a", "", 0, tags=("green", "grey", "red")), row("b", "", 0), row("c", "", 0, tags=("grey",))]
    batch = collate(processor, rows, tags=tags)
    assert batch["tag_ids"].tolist() == [0, 2]
    assert batch["tag_rows"].tolist() == [0, 0]
    assert batch["has_tags"].tolist() == [True, False, True]
    nothing = collate(processor, rows[1:2], tags=tags)
    assert (nothing["tag_ids"].tolist(), nothing["tag_ids"].dtype) == ([], torch.int64)


def test_rows_are_asked_for_by_epoch_and_number(write_data_set: Any, rows: list[dict[str, Any]]) -> None:
    videos = VideoRows(open_videos(write_data_set(rows)))
    assert len(videos) == 7
    found = videos[(3, 5)]
    assert (found["epoch"], found["id"]) == (3, "v5")
    assert found["frames"].tolist() == rows[5]["frames"].tolist()
    several = videos.__getitems__([(3, 5), (4, 0)])
    assert [(row["epoch"], row["id"]) for row in several] == [(3, "v5"), (4, "v0")]


def test_lists_stay_where_they_are() -> None:
    batch = {"x": torch.ones(2), "row_ids": ["a", "b"]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].device.type == "meta"
    assert moved["row_ids"] is batch["row_ids"]


def test_data_set_to_batches(write_data_set: Any, rows: list[dict[str, Any]], tokenizer: Any, tmp_path: Path) -> None:
    """From the files to a batch: the frames of the bundled processor are the frames of the file."""
    videos = VideoRows(open_videos(write_data_set(rows)))
    processor = VideoTextProcessor(tokenizer, streams={"frames": {"dim": 4, "max_length": 8}})
    batch = collate(processor, [videos[(0, 6)], videos[(0, 0)]], mask_text=False, mask_frames=False)
    assert batch["frame_mask"].sum(1).tolist() == [6, 0]
    assert batch["frame_features"][0].tolist() == rows[6]["frames"].tolist()
