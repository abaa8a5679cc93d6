"""The files that are bundled are whole and are what the sample's README says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vidsim.data import sample
from vidsim.data.arrow import Videos, open_videos
from vidsim.data.convert import table
from vidsim.data.pairs import read_pairs

SAMPLE = Path(sample.__file__).parent
PARTS = {"train": 2400, "validation": 600, "test": 1000}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    out = tmp_path_factory.mktemp("sample") / "videos"
    features = ["--features", str(SAMPLE / "features.npy"), "--feature_id", "feature_id"]
    table.main([str(SAMPLE / "videos.jsonl"), "--out", str(out), *features])
    return open_videos(out)


def test_converts_without_a_gap(videos: Videos) -> None:
    assert len(videos) == 3704
    assert videos.streams == {"frames": 256}
    counts = videos.manifest.counts
    assert counts["num_unused_features"] == {"frames": 0}
    assert counts["title"]["num_empty"] == counts["tags"]["num_empty"] == counts["frames"]["num_empty"] == 0
    assert counts["asr"]["num_empty"] == 3704 - 1308
    assert (videos.manifest.streams["frames"].extractor or "").startswith("efficientnet-lite0, 224 px")


def test_both_languages_of_an_item_are_one_clip(videos: Videos) -> None:
    english, chinese = videos.read(videos.rows_of(["en-1f600", "zh-1f600"]).tolist())
    assert (english["title"], chinese["title"]) == ("grinning face", "嘿嘿")
    assert english["frames"].shape == (8, 256)
    np.testing.assert_array_equal(english["frames"], chinese["frames"])
    assert english["category"] == chinese["category"]


def test_pairs_are_on_the_grid_and_spread(videos: Videos) -> None:
    known = set(videos.ids().to_pylist())
    for name, number in PARTS.items():
        pairs = read_pairs(SAMPLE / f"pairs_{name}.tsv")
        assert len(pairs) == number
        assert known.issuperset(pairs.unique_ids())
        np.testing.assert_array_equal(pairs.score * 20, np.round(pairs.score * 20))
        assert (pairs.score == 0).mean() == pytest.approx(0.35, abs=0.01)
        assert len(set(pairs.score.tolist())) >= 19
        crossing = Counter(a[:2] + b[:2] for a, b in zip(pairs.id1, pairs.id2, strict=True))
        assert set(crossing) == {"enen", "zhzh", "enzh"}
        assert min(crossing.values()) > 0.15 * number


def test_no_item_stands_on_two_sides() -> None:
    items = {name: {id[3:] for id in read_pairs(SAMPLE / f"pairs_{name}.tsv").unique_ids()} for name in PARTS}
    held_out = (SAMPLE / "holdout_ids.txt").read_text().split()
    assert len(held_out) == len(set(held_out)) == 1482
    held_out_items = {id[3:] for id in held_out}
    assert not items["validation"] & items["test"]
    assert items["validation"] | items["test"] <= held_out_items
    assert not items["train"] & held_out_items


def test_it_is_small_and_holds_text_only_of_what_it_says() -> None:
    files = [path for path in SAMPLE.iterdir() if path.is_file() and path.suffix != ".py"]
    assert sum(path.stat().st_size for path in files) < 8 * 2**20
    keys = {"id", "feature_id", "title", "asr", "tags", "category", "group", "subgroup"}
    for line in (SAMPLE / "videos.jsonl").read_text(encoding="utf-8").splitlines():
        assert set(json.loads(line)) == keys
