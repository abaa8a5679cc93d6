from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.annotation import split_videos
from vidsim.data.cowatch_graph import TRAIN
from vidsim.data.ids import read_ids


def load() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "prepare_tagging.py"
    spec = importlib.util.spec_from_file_location("prepare_tagging", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tagging = load()
WORDS = ("黑神话悟空", "我的世界", "美食测评", "校园日常")


def videos(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"BV{number}",
            "title": WORDS[number % 4],
            "desc": f"看{WORDS[number % 3]} #话题{number} 好",
            "tags": [] if number == 3 else ["游戏", WORDS[number % 4]],
            "danmaku_text": ["哈哈", WORDS[number % 2]] if number % 5 else None,
            **{name: number * 10 for name in tagging._COUNTS},
            "favorite": None,
        }
        for number in range(count)
    ]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "videos.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_tags_are_not_read_as_text(tmp_path: Path) -> None:
    rows = tagging.read_videos("bilibili_hot", write(tmp_path / "src", videos(6)))
    assert [row["id"] for row in rows] == ["BV0", "BV1", "BV2", "BV4", "BV5"]  # BV3 has none
    assert rows[1]["asr"] == "看我的世界   好 哈哈 我的世界"
    assert not any("#" in row["asr"] for row in rows)


def test_held_out_videos_teach_no_words(tmp_path: Path) -> None:
    ids = [row["id"] for row in videos(60) if row["tags"]]
    is_training = split_videos(ids, tagging.TEST_FRACTION, tagging.VALIDATION_FRACTION, 0, None) == TRAIN
    changed = videos(60)
    for row in changed:
        if row["tags"] and not is_training[ids.index(row["id"])]:
            row["title"] = "完全不同的标题"
    made = {}
    for name, rows in (("one", videos(60)), ("other", changed)):
        tagging.prepare("bilibili_hot", write(tmp_path / name, rows), tmp_path / name / "out")
        made[name] = np.load(tmp_path / name / "out" / "title.npy")
    assert read_ids(tmp_path / "one" / "out" / "ids.txt") == ids
    held_out = read_ids(tmp_path / "one" / "out" / "held_out.txt")
    assert held_out == [id for id, trained in zip(ids, is_training, strict=True) if not trained]
    np.testing.assert_allclose(made["one"][is_training], made["other"][is_training], atol=1e-5)
    assert not np.allclose(made["one"][~is_training], made["other"][~is_training])
    counts = np.load(tmp_path / "one" / "out" / "counts.npy")
    assert counts.shape == (59, 16)
    assert counts[1].tolist() == pytest.approx([np.log1p(10)] * 4 + [0] + [np.log1p(10)] * 3 + [0] * 4 + [1] + [0] * 3)


def test_a_folder_without_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="talk_data_2021"):
        tagging.prepare("ted_talks", tmp_path, tmp_path / "out")
