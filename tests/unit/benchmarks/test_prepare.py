# ruff: noqa: RUF001 (Chinese punctuation is what is tested)
from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.convert.features import write_stack
from vidsim.data.pairs import read_pairs


def load(name: str) -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


msvd = load("prepare_msvd")
emoji = load("prepare_emoji")


def test_rated_sentences_are_dropped_whatever_their_case_and_marks() -> None:
    pairs = [{"sent1": "A man is eating.", "sent2": "A Dog  runs!", "sent1_zh": "一个人在吃饭。", "sent2_zh": None}]
    rated = msvd.rated_sentences(pairs)
    captions = [
        "a man is eating",
        "a man is eating rice",
        "A man is eating rice.",
        "a dog runs",
        "一个人，在吃饭",
        "",
        "!",
    ]
    assert msvd.usable_captions(captions, rated) == ["a man is eating rice"]


def test_normalises_words_and_characters() -> None:
    assert msvd.normalise("It's a  DOG, no?") == "it s a dog no"
    assert msvd.normalise("一个人 在，跑。") == "一个人在跑"


def test_tags_are_content_shared_by_captions() -> None:
    assert msvd.terms("a man is playing the guitar", "en") == {"man", "playing", "guitar"}
    assert msvd.terms("一个男人在弹吉他", "zh") == {"男人", "弹吉", "吉他"}
    clips = [["a dog runs", "the dog jumps"]] * 5 + [["a cat sits", "the cat sleeps"]] * 4 + [["x", "y"]] * 41
    tags = msvd.choose_tags(clips, "en")
    assert tags[0] == ["dog"]  # "runs" stands in one caption
    assert tags[5] == []  # "cat" is a tag of four clips only
    assert tags[9] == []


def test_clip_pairs_are_averaged_and_of_two_clips() -> None:
    rows = [
        {"vid1": "a", "vid2": "b", "score": 5.0},
        {"vid1": "b", "vid2": "a", "score": 2.5},
        {"vid1": "a", "vid2": "a", "score": 5.0},
        {"vid1": "c", "vid2": "a", "score": 0.0},
        {"vid1": "", "vid2": "a", "score": 1.0},
        {"vid1": "a", "vid2": None, "score": 1.0},
    ]
    pairs = msvd.clip_pairs(rows)
    assert list(zip(pairs.id1, pairs.id2, pairs.score.tolist(), strict=True)) == [("a", "b", 0.75), ("a", "c", 0.0)]


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_prepares_msvd(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    captions = ["rated one", "kept one", "kept two", "kept three"]
    videos = [{"id": id, "captions_en": captions, "captions_zh": ["评分句", "保留句"]} for id in ("a", "b")]
    _lines(source / "videos.jsonl", videos)
    pair = {"score": 3.0, "sent1": "Rated one.", "sent2": "x", "sent1_zh": "评分句。", "sent2_zh": "y"}
    pairs = [
        pair | {"vid1": "a", "vid2": "b", "cand1": ["a"], "cand2": ["b"]},
        pair | {"vid1": "a", "vid2": "b", "cand1": ["a", "c"], "cand2": ["b"], "score": 5.0},
    ]
    _lines(source / "pairs_msrvid.jsonl", pairs)
    write_stack(source / "f.npy", [("b", np.ones((2, 3), np.float16))], dim=3, extractor="net")
    out = tmp_path / "out"
    msvd.main([str(source), "--out", str(out), "--features", str(source / "f.npy")])
    first, second = open_videos(out / "en")
    assert (first["title"], first["asr"]) == ("kept one", "kept two. kept three")
    assert (len(first["frames"]), len(second["frames"])) == (0, 2)
    assert [row["title"] for row in open_videos(out / "zh")] == ["保留句"] * 2
    assert read_pairs(out / "pairs.tsv").score.tolist() == [pytest.approx(0.8)]
    assert read_pairs(out / "pairs_unambiguous.tsv").score.tolist() == [pytest.approx(0.6)]
    assert (out / "pair_ids.txt").read_text() == "a\nb\n"


def test_prepares_emoji(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    item = {"title_en": "cat", "title_zh": "猫", "tags_en": ["pet"], "tags_zh": ["宠物", "猫"], "category_id": 4}
    item |= {"subgroup_en": "mammal", "subgroup_zh": "哺乳", "group_en": "animals", "group_zh": "动物"}
    _lines(source / "items.jsonl", [item | {"id": id, "phrases_en": ["a cat", "pet"]} for id in ("1", "2")])
    (source / "pairs_human_dev.tsv").write_text("id1\tid2\thuman_score_0_4\tmore\n2\t1\t3.0\tx\n")
    features = [(id, np.ones((1, 3), np.float16)) for id in ("1", "2")]
    write_stack(source / "f.npy", features, dim=3, extractor="net")
    out = tmp_path / "out"
    emoji.main([str(source), "--out", str(out), "--features", str(source / "f.npy")])
    english, chinese = open_videos(out / "en")[0], open_videos(out / "zh")[0]
    assert (english["title"], english["asr"], english["tags"], english["category"]) == (
        "cat",
        "pet, a cat, mammal, animals",
        ["pet"],
        4,
    )
    assert (chinese["title"], chinese["asr"], chinese["tags"]) == ("猫", "宠物，哺乳，动物", ["宠物", "猫"])
    assert read_pairs(out / "pairs.tsv").score.tolist() == [0.75]
    assert (out / "pair_ids.txt").read_text() == "1\n2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\tb\n", "needs the columns"), ("id1\tid2\thuman_score_0_4\na\tb\t4.5\n", "2: 4.5 is not within 0 to 4")],
)
def test_bad_human_scores_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        emoji.read_human_pairs(tmp_path / "pairs.tsv")
