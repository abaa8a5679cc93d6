from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.inspection import inspect_pairs, inspect_videos, main
from vidsim.data.pairs import Pairs

Rows = list[dict[str, Any]]
Write = Callable[..., Path]


def test_counts_by_hand(write_data_set: Write, rows: Rows) -> None:
    found = inspect_videos(open_videos(write_data_set(rows, num_shards=2)), num_rows=2)
    assert (found["num_videos"], found["num_shards"]) == (7, 2)
    assert found["streams"] == {"frames": {"dim": 4, "extractor": "test"}}
    # Titles have 0, 2, ..., 12 characters (not bytes); asr is empty in rows 1, 3, 5; frames 0..6.
    title = found["lengths"]["title"]
    assert (title["mean"], title["p50"], title["max"], title["num_empty"]) == (6.0, 6, 12, 1)
    assert found["lengths"]["asr"]["share_empty"] == pytest.approx(3 / 7)
    assert found["lengths"]["asr"]["max"] == len("speech 🎬")
    assert found["lengths"]["tags"]["num_empty"] == 3
    assert found["lengths"]["frames"]["p75"] == 5
    assert found["category"] == {"num_distinct": 6, "num_null": 1}
    assert found["top_tags"] == {"0": 4, "1": 2}
    assert found["num_distinct_tags"] == 2
    first, second = found["rows"]
    assert first["frames"] == {"shape": [0, 4]}
    assert second["frames"] == {"shape": [1, 4], "mean": 2.5, "sd": 1.118}  # 1 2 3 4


def test_empty_data_set(write_data_set: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_data_set([], has_tags=False))]) == 0
    text = capsys.readouterr().out
    assert "0 videos" in text
    assert "tags: this data set has none" in text


def test_pairs_by_hand() -> None:
    pairs = Pairs(["a", "b", "a", "x", "y"], ["b", "a", "c", "x", "z"], np.array([0, 0, 0.5, 1, 1]))
    found = inspect_pairs(pairs)
    assert (found["num_pairs"], found["num_videos"]) == (5, 6)
    assert (found["num_self_pairs"], found["num_repeated_pairs"]) == (1, 1)  # x-x; b-a repeats a-b
    assert (found["num_components"], found["largest_component_videos"]) == (3, 3)
    assert found["levels"] == {0.0: 2, 0.5: 1, 1.0: 2}
    assert found["score_mean"] == 0.5
    # Two groups of two: 1 - (6 + 6) / (125 - 5) = 0.9.
    assert found["tie_ceiling"] == pytest.approx(np.sqrt(0.9))


def test_many_levels_become_quantiles() -> None:
    ids = [str(number) for number in range(101)]
    found = inspect_pairs(Pairs(ids, ids, np.linspace(0, 1, 101)))
    assert found["levels"] == {}
    assert found["num_levels"] == 101
    assert found["quantiles"]["0.25"] == pytest.approx(0.25)
    assert found["tie_ceiling"] == 1.0


def test_equal_scores_have_no_ceiling() -> None:
    ids = ["a", "b", "c"]
    assert inspect_pairs(Pairs(ids, ids, np.full(3, 0.5)))["tie_ceiling"] is None


def test_command_shows_all_there_is(
    write_data_set: Write, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_set(rows, "all/pairwise")
    write_data_set([{"id": "t"}], "all/test_a", has_tags=False)
    (tmp_path / "all" / "pairs.tsv").write_text("v0\tv1\t0.5\nv0\tv6\t1\n")
    (tmp_path / "all" / "tags.txt").write_text("0\n1\n")
    assert main([str(tmp_path / "all"), "--rows", "1"]) == 0
    text = capsys.readouterr().out
    assert "data set  pairwise: 7 videos in 1 shards" in text
    assert "stream frames: float16 [n, 4], extractor test" in text
    assert "tags: 2 values; most frequent: 0 (4), 1 (2)" in text
    assert "data set  test_a: 1 videos" in text
    assert "2 pairs of 3 videos" in text
    assert "best Spearman of a prediction without ties: 1.0000" in text
    assert "tags.txt: 2 tags" in text
    assert main([str(tmp_path / "all"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [data_set["name"] for data_set in found["data_sets"]] == ["pairwise", "test_a"]
    assert found["pairs"][str(tmp_path / "all" / "pairs.tsv")]["levels"] == {"0.5": 1, "1.0": 1}


def test_counts_of_the_command_line_are_checked(write_data_set: Write, rows: Rows) -> None:
    folder = str(write_data_set(rows))
    with pytest.raises(UserError, match="--tags: 0 is below 1"):
        main([folder, "--tags", "0"])
    with pytest.raises(UserError, match="--rows: -1 is below 0"):
        main([folder, "--rows", "-1"])


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no data set"):
        main([str(tmp_path)])
