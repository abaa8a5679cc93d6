from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.data.convert.features import open_features, write_stack
from vidsim.data.pairs import read_pairs
from vidsim.data.sample import build

ITEMS = 60


def item(number: int) -> dict[str, Any]:
    group = number % 3
    tags = [f"t{number % 4}", f"u{number % 6}", f"g{group}"]
    return {
        "id": f"{number:04x}",
        "title_en": f"thing {number}",
        "title_zh": f"物{number}",
        "tags_en": tags,
        "tags_zh": [f"中{tag}" for tag in tags],
        "phrases_en": ["a phrase", "another"] if number % 2 else [],
        "group_en": f"g{group}",
        "group_zh": f"组{group}",
        "subgroup_en": f"s{number % 6}",
        "subgroup_zh": f"子{number % 6}",
        "category_id": number % 6,
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    lines = [json.dumps(item(number)) for number in reversed(range(ITEMS))]
    (folder / "items.jsonl").write_text("\n".join(lines))
    rng = np.random.default_rng(0)
    rows = ((f"{number:04x}", rng.random((1 + number % 8, 300)).astype(np.float16)) for number in range(ITEMS))
    write_stack(folder / "raw.npy", rows, dim=300, extractor="net")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FRAME_DIM", 5)
    monkeypatch.setattr(build, "NUM_PAIRS", {"train": 100, "validation": 20, "test": 40})


def test_grade_is_the_documented_formula() -> None:
    weights = ({"x": 1.0, "y": 3.0, "z": 2.0}, {"中": 2.0, "文": 2.0})

    def make(en: str, zh: str, group: str, subgroup: str) -> build.Item:
        raw = {"group_en": group, "subgroup_en": subgroup}
        return build.Item("", raw, (frozenset(en), frozenset(zh)))

    first = make("xy", "中", "g", "s")
    # English: y of x y z = 3 / 6; Chinese: 中 of 中 文 = 2 / 4; 0.65 * sqrt(0.5) = 0.4596.
    assert build.grade(first, make("yz", "中文", "other", "other"), weights) == 0.45
    assert build.grade(first, make("yz", "中文", "g", "other"), weights) == 0.6
    assert build.grade(first, make("yz", "中文", "g", "s"), weights) == 0.8
    assert build.grade(first, make("", "", "g", "s"), weights) == 0.35
    assert build.grade(first, make("z", "文", "other", "other"), weights) == 0
    assert build.grade(first, first, weights) == 1


def test_rare_keywords_weigh_more(source: Path) -> None:
    english, chinese = build.inverse_frequencies(build.read_items(source / "items.jsonl"))
    assert english["t0"] == pytest.approx(math.log(4))
    assert english["u0"] == pytest.approx(math.log(6))
    assert chinese["中g0"] == pytest.approx(math.log(3))


def test_partition_is_complete_and_does_not_depend_on_order() -> None:
    ids = [str(number) for number in range(200)]
    parts = build.partition(ids)
    assert {name: len(part) for name, part in parts.items()} == {"train": 120, "validation": 30, "test": 50}
    assert sorted(id for part in parts.values() for id in part) == sorted(ids)
    assert build.partition(reversed(ids)) == parts


def test_axes_are_the_principal_components(source: Path) -> None:
    features = open_features(source / "raw.npy")
    assert isinstance(features, build.ArrayStack)
    ids = [f"{number:04x}" for number in range(30)]
    found = build.fit_axes(features, ids, 4)
    rows = np.concatenate([features.read(id) for id in ids]).astype(np.float64)  # type: ignore[arg-type]
    _, singular, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(axes[:4] @ found.axes), np.eye(4), atol=1e-6)
    assert found.explained == pytest.approx((singular[:4] ** 2).sum() / (singular**2).sum())
    assert (found.axes[np.abs(found.axes).argmax(axis=0), range(4)] > 0).all()
    expected = (rows[:1] - rows.mean(axis=0)) @ found.axes
    np.testing.assert_allclose(found.project(rows[:1].astype(np.float16)), expected, atol=1e-2)


@pytest.mark.usefixtures("small")
def test_builds_the_same_files_twice(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build.main([str(source), "--out", str(tmp_path / name), "--raw_features", str(source / "raw.npy")])
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        "features.json",
        "features.npy",
        "holdout_ids.txt",
        "pairs_test.tsv",
        "pairs_train.tsv",
        "pairs_validation.tsv",
        "videos.jsonl",
    ]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.usefixtures("small")
def test_no_item_stands_on_two_sides(source: Path, tmp_path: Path) -> None:
    build.build(source, tmp_path, source / "raw.npy")
    items = {}
    for name, number in build.NUM_PAIRS.items():
        pairs = read_pairs(tmp_path / f"pairs_{name}.tsv")
        assert len(pairs) == number
        items[name] = {id.partition("-")[2] for id in pairs.unique_ids()}
        couples = {frozenset((a[3:], b[3:])) for a, b in zip(pairs.id1, pairs.id2, strict=True)}
        assert len(couples) == number
        assert max(Counter(id[3:] for id in pairs.id1 + pairs.id2).values()) <= 2 * 24
    assert not items["train"] & (items["validation"] | items["test"])
    assert not items["validation"] & items["test"]
    held_out = set((tmp_path / "holdout_ids.txt").read_text().split())
    assert len(held_out) == 2 * round(0.4 * ITEMS)
    assert {id.partition("-")[2] for id in held_out} >= items["validation"] | items["test"]
    assert not {id.partition("-")[2] for id in held_out} & items["train"]
