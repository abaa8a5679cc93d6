from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from vidsim.common.errors import UserError
from vidsim.data.pairs import Pairs, read_pairs, write_pairs
from vidsim.data.splits import Split, describe, main, split_fractions, split_pairs


def make_pairs(ends: np.ndarray) -> Pairs:
    """Pairs from int [N, 2]."""
    return Pairs(
        [str(end) for end in ends[:, 0].tolist()],
        [str(end) for end in ends[:, 1].tolist()],
        np.linspace(0, 1, len(ends)),
    )


def random_graph(seed: int, num_videos: int, num_pairs: int) -> Pairs:
    return make_pairs(np.random.default_rng(seed).integers(0, num_videos, (num_pairs, 2)))


def clustered_graph(num_clusters: int = 60, size: int = 8, num_bridges: int = 40) -> Pairs:
    """Dense groups with few links between them, in one component or a few."""
    generator = np.random.default_rng(3)
    inside = [generator.integers(0, size, (3 * size, 2)) + cluster * size for cluster in range(num_clusters)]
    bridges = generator.integers(0, num_clusters * size, (num_bridges, 2))
    return make_pairs(generator.permutation(np.concatenate([*inside, bridges])))


def videos_of(pairs: Pairs, part: np.ndarray) -> set[str]:
    chosen = pairs.take(part)
    return {*chosen.id1, *chosen.id2}


def assert_every_pair_once(split: Split, num_pairs: int) -> None:
    everything = np.concatenate([split.train, split.validation, split.test, split.dropped])
    assert np.sort(everything).tolist() == list(range(num_pairs))
    for part in (split.train, split.validation, split.test, split.dropped):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


graphs = st.builds(
    random_graph,
    seed=st.integers(0, 10_000),
    num_videos=st.sampled_from([120, 300, 1000]),
    num_pairs=st.integers(40, 120),
)


@settings(max_examples=40, deadline=None)
@given(pairs=graphs, num_folds=st.integers(2, 6), seed=st.integers(0, 5))
def test_video_disjoint_folds(pairs: Pairs, num_folds: int, seed: int) -> None:
    validated = np.zeros(len(pairs), dtype=int)
    for fold in range(num_folds):
        try:
            split = split_pairs(pairs, "video_disjoint", fold, num_folds, seed)
        except UserError:
            reject()  # a dense graph: nothing is left to train on; hypothesis fails if that is common
        assert_every_pair_once(split, len(pairs))
        validation = videos_of(pairs, split.validation)
        assert not videos_of(pairs, split.train) & validation
        assert split.overlap == 0
        for id1, id2 in zip(*(getattr(pairs.take(split.dropped), name) for name in ("id1", "id2")), strict=True):
            assert id1 in validation or id2 in validation  # dropped for a reason
        validated[split.validation] += 1
    assert (validated == 1).all()


@settings(max_examples=25, deadline=None)
@given(pairs=graphs, num_folds=st.integers(2, 6), seed=st.integers(0, 5))
def test_random_folds(pairs: Pairs, num_folds: int, seed: int) -> None:
    validated = np.zeros(len(pairs), dtype=int)
    for fold in range(num_folds):
        split = split_pairs(pairs, "random", fold, num_folds, seed)
        assert_every_pair_once(split, len(pairs))
        assert len(split.dropped) == 0
        shared = videos_of(pairs, split.train) & videos_of(pairs, split.validation)
        assert split.overlap == len(shared)
        validated[split.validation] += 1
    assert (validated == 1).all()


@settings(max_examples=40, deadline=None)
@given(pairs=graphs, seed=st.integers(0, 5))
def test_three_parts_share_no_video(pairs: Pairs, seed: int) -> None:
    try:
        split = split_fractions(pairs, (0.7, 0.15, 0.15), seed)
    except UserError:
        reject()
    assert_every_pair_once(split, len(pairs))
    train, validation, test = (videos_of(pairs, part) for part in (split.train, split.validation, split.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert split.overlap == 0


def test_split_depends_on_the_seed_only() -> None:
    pairs = random_graph(0, 500, 400)
    first, again, other = (split_pairs(pairs, seed=seed) for seed in (1, 1, 2))
    assert first.validation.tolist() == again.validation.tolist()
    assert first.validation.tolist() != other.validation.tolist()
    first, again, other = (split_fractions(pairs, seed=seed) for seed in (1, 1, 2))
    assert first.test.tolist() == again.test.tolist()
    assert first.test.tolist() != other.test.tolist()


def test_no_video_leaks_and_little_is_lost_on_clusters() -> None:
    pairs = clustered_graph()
    lost = [len(split_pairs(pairs, fold=fold, num_folds=5).dropped) / len(pairs) for fold in range(5)]
    assert max(lost) < 0.15
    assert sum(lost) / 5 < 0.06  # growing in the plain order of links loses 0.09
    shuffled = split_pairs(pairs, "random", 0, 5)
    touching = videos_of(pairs, shuffled.validation)
    lost_at_random = sum(
        pairs.id1[row] in touching or pairs.id2[row] in touching for row in shuffled.train.tolist()
    ) / len(pairs)
    assert lost_at_random > 0.6
    split = split_fractions(pairs)
    assert len(split.dropped) / len(pairs) < 0.15
    assert len(split.test) == pytest.approx(0.15 * len(pairs), abs=2)
    assert len(split.validation) == pytest.approx(0.15 * len(pairs), abs=2)


def test_isolated_pairs_lose_nothing() -> None:
    pairs = make_pairs(np.arange(200).reshape(100, 2))
    split = split_fractions(pairs, (0.6, 0.2, 0.2))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [60, 20, 20]
    assert [len(split_pairs(pairs, fold=fold, num_folds=4).validation) for fold in range(4)] == [25] * 4


def test_every_fold_has_its_share_of_a_giant_component() -> None:
    # A chain of 300 pairs beside 200 single pairs: 60 and 40 of them in each of 5 folds.
    chain = np.stack([np.arange(300), np.arange(1, 301)], axis=1)
    single = np.arange(400).reshape(200, 2) + 1000
    pairs = make_pairs(np.concatenate([chain, single]))
    for fold in range(5):
        split = split_pairs(pairs, fold=fold, num_folds=5)
        assert (split.validation < 300).sum() == 60
        assert (split.validation >= 300).sum() == 40
        # Grown from a random start, a chain falls into at most three stretches of one fold.
        assert len(split.dropped) <= 6


def test_pair_or_is_the_published_rule() -> None:
    pairs = make_pairs(np.array([[5, 10], [5, 6], [1, 6], [11, 21], [7, 10], [20, 25]]))
    split = split_pairs(pairs, "pair_or", 0, 5)
    assert split.validation.tolist() == [0, 5]  # both ids % 5 == 0
    assert split.train.tolist() == [1, 2, 3, 4]
    assert split.dropped.tolist() == []
    assert split.overlap == 2  # 5 and 10
    assert split_pairs(pairs, "pair_or", 1, 5).validation.tolist() == [2, 3]


def test_pair_or_takes_large_ids_and_refuses_text() -> None:
    big = 9_223_372_036_854_775_805  # % 5 == 0, more than a float can tell apart
    pairs = Pairs([str(big), str(big + 1)], [str(big - 5), "3"], np.array([0.0, 1.0]))
    assert split_pairs(pairs, "pair_or", 0, 5).validation.tolist() == [0]
    with pytest.raises(UserError, match="field 'id2': pair 1: 'v3' is no whole number"):
        split_pairs(Pairs(["1", "2"], ["3", "v3"], np.array([0.0, 1.0])), "pair_or")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 5}, "fold 5 of 5"),
        ({"fold": -1}, "fold -1 of 5"),
        ({"num_folds": 1}, "fold 0 of 1"),
        ({"method": "kfold"}, "'kfold' is no way to split"),
        ({"num_folds": 200, "fold": 199}, "no pair of 100 is left for validation"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_pairs(make_pairs(np.arange(200).reshape(100, 2)), **arguments)  # type: ignore[arg-type]


def test_nothing_left_to_train_on() -> None:
    star = make_pairs(np.stack([np.zeros(30, dtype=int), np.arange(1, 31)], axis=1))
    with pytest.raises(UserError, match="no pair of 30 is left for train"):
        split_pairs(star)
    with pytest.raises(UserError, match="no pair of 30 is left for"):
        split_fractions(star)


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_bad_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="are not three shares"):
        split_fractions(make_pairs(np.arange(20).reshape(10, 2)), fractions)


def test_describe_states_the_overlap() -> None:
    pairs = make_pairs(np.array([[5, 10], [5, 6], [1, 6], [11, 21]]))
    text = describe(split_pairs(pairs, "pair_or", 0, 5), pairs)
    assert "overlap train/validation: 1 of 2 videos (50.0%)  <- these videos leak" in text
    text = describe(split_fractions(make_pairs(np.arange(40).reshape(20, 2))), make_pairs(np.arange(40).reshape(20, 2)))
    assert "train              14 pairs   70.0%         28 videos" in text
    assert "overlap train/validation: 0 of 6 videos (0.0%)" in text
    assert "overlap train/test: 0 videos" in text
    assert "overlap validation/test: 0 videos" in text
    assert "leak" not in text


def test_command_writes_three_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = clustered_graph()
    write_pairs(tmp_path / "pairs.tsv", pairs)
    out = tmp_path / "split"
    assert main([str(tmp_path / "pairs.tsv"), "--out", str(out), "--fractions", "0.7", "0.15", "0.15"]) == 0
    parts = {path.stem: read_pairs(path) for path in out.glob("*.tsv")}
    assert parts.keys() == {"train", "validation", "test", "dropped"}
    assert sum(len(part) for part in parts.values()) == len(pairs)
    held_out = (out / "holdout_ids.txt").read_text().split()
    assert set(held_out) == {*parts["validation"].unique_ids(), *parts["test"].unique_ids()}
    assert len(held_out) == len(set(held_out))
    assert not set(held_out) & set(parts["train"].unique_ids())
    assert "overlap train/test: 0 videos" in capsys.readouterr().out


def test_command_writes_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = make_pairs(np.arange(24).reshape(12, 2))
    write_pairs(tmp_path / "pairs.tsv", pairs)
    assert main([str(tmp_path / "pairs.tsv"), "--out", str(tmp_path / "folds"), "--num_folds", "3"]) == 0
    found = [read_pairs(tmp_path / "folds" / f"fold_{fold}" / "validation.tsv") for fold in range(3)]
    assert sorted(id for part in found for id in part.id1) == sorted(pairs.id1)
    assert capsys.readouterr().out.count("overlap train/validation: 0 of 8 videos") == 3
    with pytest.raises(UserError, match="pair_or makes folds only"):
        main([str(tmp_path / "pairs.tsv"), "--out", str(tmp_path / "x"), "--method", "pair_or"])


def test_an_earlier_split_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.tsv", clustered_graph())
    words = [str(tmp_path / "pairs.tsv"), "--out", str(tmp_path / "out")]
    assert main([*words, "--num_folds", "4"]) == 0
    mine = {"mine.txt", "fold_3/mine.txt", "fold_3_kept/train.tsv"}
    (tmp_path / "out/fold_3_kept").mkdir()
    for name in mine:
        (tmp_path / "out" / name).write_text("keep")
    with pytest.raises(UserError, match=r"out, --out: is there already\. Fix: .*--overwrite"):
        main([*words, "--num_folds", "2"])
    first = (tmp_path / "out/fold_0/train.tsv").read_bytes()
    write_pairs(tmp_path / "few.tsv", make_pairs(np.arange(40).reshape(20, 2)))
    with pytest.raises(UserError, match="is left for"):
        main([str(tmp_path / "few.tsv"), *words[1:], "--num_folds", "50", "--overwrite"])
    assert (tmp_path / "out/fold_0/train.tsv").read_bytes() == first  # a split that fails removes nothing
    assert main([*words, "--num_folds", "2", "--overwrite"]) == 0
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    parts = ("train.tsv", "validation.tsv", "dropped.tsv", "holdout_ids.txt")
    folds = {f"fold_{fold}/{part}" for fold in range(2) for part in parts}
    assert files == folds | mine
    assert not (tmp_path / "out/fold_2").exists()
    assert main([*words, "--overwrite"]) == 0
    assert not (tmp_path / "out/fold_0").exists()
    assert {path.stem for path in (tmp_path / "out").glob("*.tsv")} == {"train", "validation", "test", "dropped"}


def test_the_pairs_themselves_are_not_removed(tmp_path: Path) -> None:
    for name in ("train.tsv", "fold_0/test.tsv"):
        path = tmp_path / "out" / name
        write_pairs(path, clustered_graph())
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"would be replaced\. Fix: choose another --out"):
            main([str(path), "--out", str(tmp_path / "out"), "--overwrite"])
        assert path.read_bytes() == before


def test_other_scores_are_split_when_their_range_is_named(tmp_path: Path) -> None:
    grades = make_pairs(np.arange(40).reshape(20, 2))
    write_pairs(tmp_path / "grades.tsv", Pairs(grades.id1, grades.id2, 5 * grades.score))
    words = [str(tmp_path / "grades.tsv"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="is not within 0 to 1"):
        main(words)
    assert main([*words, "--score_range", "0", "5"]) == 0
    assert read_pairs(tmp_path / "out/train.tsv", score_range=None).score.max() > 1


def test_a_seed_below_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seed: -1 is below 0"):
        main([str(tmp_path / "pairs.tsv"), "--out", str(tmp_path / "out"), "--seed", "-1"])
