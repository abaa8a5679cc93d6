from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vidsim.data.pairs import Pairs


def load(name: str) -> ModuleType:
    folder = Path(__file__).parents[3] / "benchmarks"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


grades = load("emoji_grades")
crossval = load("crossval")


def item(id: str, tags: list[str], subgroup: str, group: str) -> dict[str, object]:
    return {"id": id, "tags_en": tags, "tags_zh": tags, "subgroup_en": subgroup, "group_en": group}


ITEMS = [item("1", ["a", "b"], "x", "X"), item("2", ["a", "c"], "x", "X"), item("3", ["d"], "y", "X")]


def test_keyword_overlap_is_a_jaccard_index() -> None:
    plain = grades.keyword_overlap(ITEMS, "en", is_weighted=False)
    assert plain[0] == pytest.approx([1.0, 1 / 3, 0.0])
    common, rare = np.log(3 / 2), np.log(3)
    assert grades.keyword_overlap(ITEMS, "en", is_weighted=True)[0, 1] == pytest.approx(common / (common + 2 * rare))


def test_grade_adds_groups_to_the_overlap() -> None:
    common, rare = np.log(3 / 2), np.log(3)
    overlap = common / (common + 2 * rare)
    assert grades.computed_grades(ITEMS)[0] == pytest.approx([1.0, 0.8 * np.sqrt(overlap) + 0.2, 0.08], abs=1e-6)


def test_computed_pairs_leave_items_of_human_pairs_out() -> None:
    items = [item(str(n), [f"k{n}", "shared" if n % 2 else "other"], f"s{n % 4}", f"g{n % 3}") for n in range(30)]
    pairs = grades.sample_computed_pairs(items, {"3", "4"}, 60)
    assert len(pairs) == 60
    assert not {"3", "4"} & set(pairs.unique_ids())
    assert len({frozenset(ends) for ends in zip(pairs.id1, pairs.id2, strict=True)}) == 60


def test_cosines_and_judgement() -> None:
    pairs = Pairs(["a", "a", "b"], ["b", "c", "c"], np.array([0.0, 1.0, 0.5]))
    cosines = crossval.cosines_of(["a", "b", "c"], [[1, 0], [0, 2], [3, 3]], pairs)
    assert cosines == pytest.approx([0.0, np.sqrt(0.5), np.sqrt(0.5)])
    many = np.arange(20.0)
    result = crossval.judge("x", many, many, np.repeat([0, 1], 10))
    assert (result.spearman, result.mean_of_folds, result.num_pairs) == (pytest.approx(1), pytest.approx(1), 20)


def test_every_pair_validates_once() -> None:
    ids = [str(n) for n in range(40)]
    pairs = Pairs(ids[:-1], ids[1:], np.linspace(0, 1, 39))
    assert set(crossval.Folds(num_folds=3).assign(pairs, 0)) == {0, 1, 2}
