from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.embeddings import read_embeddings, write_embeddings
from vidsim.data.pairs import Pairs, write_pairs
from vidsim.ensemble.fuse import main, normalized_weights

IDS = [f"v{i}" for i in range(40)]


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def cosines(name: str) -> np.ndarray:
    rows = unit(read_embeddings(name).vectors)
    return rows @ rows.T


def run(line: str) -> None:
    assert main(line.split()) == 0


@pytest.fixture(autouse=True)
def _folder_with_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, dim in (("a", 6), ("b", 4), ("c", 5)):
        vectors = generator.standard_normal((40, dim)).astype(np.float32)
        write_embeddings(name, IDS, vectors, {"model": name, "data": "d", "normalized": False})
        new = generator.standard_normal((3, dim)).astype(np.float32)
        write_embeddings(f"new_{name}", ["x", "y", "z"], new, {"model": name, "data": "n"})


def test_full_width_is_the_weighted_mean_of_cosines(capsys: pytest.CaptureFixture[str]) -> None:
    run("a b c --weights 2 1 1 --out f")
    fused = read_embeddings("f")
    assert (fused.ids, fused.dim) == (IDS, 15)
    expected = 0.5 * cosines("a") + 0.25 * cosines("b") + 0.25 * cosines("c")
    np.testing.assert_allclose(cosines("f"), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(fused.vectors, axis=1), 1, atol=1e-6)
    assert (fused.metadata["data"], fused.metadata["normalized"]) == ("d", True)
    assert fused.metadata["members"] == [
        {"model": "a", "weight": 0.5},
        {"model": "b", "weight": 0.25},
        {"model": "c", "weight": 0.25},
    ]
    out = capsys.readouterr().out
    assert "fitted on 40 videos of the given embeddings themselves" in out
    assert "15 dimensions are kept of 15: a rotation" in out


def test_low_rank_equals_a_full_svd(capsys: pytest.CaptureFixture[str]) -> None:
    run("a b --dim 3 --out f")
    members = [unit(read_embeddings(name).vectors) for name in "ab"]
    rows = np.concatenate([np.sqrt(0.5) * member for member in members], axis=1)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    reference = unit(left[:, :3] * singular[:3])
    np.testing.assert_allclose(cosines("f"), reference @ reference.T, atol=1e-6)
    share = (singular[:3] ** 2).sum() / (singular**2).sum()
    assert f"3 dimensions of 10 keep {share:.4%}" in capsys.readouterr().out


def test_apply_to_new_videos_fits_nothing() -> None:
    run("a b --weights 3 1 --dim 3 --out f")
    run("new_a new_b --apply f --out new_f")
    saved = json.loads(Path("f/projection.json").read_text())
    assert [member["weight"] for member in saved["members"]] == [0.75, 0.25]
    members = [unit(read_embeddings(name).vectors) for name in "ab"]
    rows = np.concatenate([np.sqrt(w) * m for w, m in zip((0.75, 0.25), members, strict=True)], axis=1)
    right = np.linalg.svd(rows, full_matrices=False)[2][:3]
    new = [unit(read_embeddings(f"new_{name}").vectors) for name in "ab"]
    projected = unit(np.concatenate([np.sqrt(0.75) * new[0], np.sqrt(0.25) * new[1]], axis=1) @ right.T)
    np.testing.assert_allclose(cosines("new_f"), projected @ projected.T, atol=1e-6)
    assert read_embeddings("new_f").metadata["data"] == "n"
    run("new_a new_b --apply new_f --out again")  # the projection travels with what it made
    np.testing.assert_array_equal(read_embeddings("again").vectors, read_embeddings("new_f").vectors)


def test_fit_on_other_videos_equals_apply() -> None:
    run("a b --dim 3 --out f")
    run("new_a new_b --apply f --out applied")
    run("new_a new_b --fit_on a b --dim 3 --out direct")
    np.testing.assert_array_equal(read_embeddings("direct").vectors, read_embeddings("applied").vectors)


def test_fit_ids_keeps_the_others_out() -> None:
    Path("train.txt").write_text("\n".join(IDS[:30]) + "\n")
    run("a b --dim 3 --fit_ids train.txt --out f")
    for name in "ab":
        vectors = read_embeddings(name).vectors.copy()
        vectors[30:] = np.random.default_rng(9).standard_normal(vectors[30:].shape)
        write_embeddings(f"{name}2", IDS, vectors, {"model": name})
    run("a2 b2 --dim 3 --fit_ids train.txt --out g")
    np.testing.assert_array_equal(read_embeddings("f").vectors[:30], read_embeddings("g").vectors[:30])
    run("a2 b2 --dim 3 --out h")
    assert np.abs(read_embeddings("f").vectors[:30] - read_embeddings("h").vectors[:30]).max() > 1e-3


def labelled_by(name: str) -> Pairs:
    rows = np.random.default_rng(1).integers(0, 40, (2, 120))
    score = np.clip(cosines(name)[rows[0], rows[1]], 0, 1)
    return Pairs([IDS[i] for i in rows[0]], [IDS[i] for i in rows[1]], score)


def test_searched_weights_and_a_member_of_weight_zero(capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs("pairs.tsv", labelled_by("b"))
    run("a b --search_weights pairs.tsv --out f")
    assert "a: weight 0.000" in capsys.readouterr().out
    assert read_embeddings("f").dim == 4
    np.testing.assert_allclose(cosines("f"), cosines("b"), atol=1e-6)
    run("new_a new_b --apply f --out new_f")  # the same list of members, also where one has no share
    np.testing.assert_allclose(cosines("new_f"), cosines("new_b"), atol=1e-6)
    run("new_a new_b --fit_on a b --search_weights pairs.tsv --out again")
    np.testing.assert_array_equal(read_embeddings("again").vectors, read_embeddings("new_f").vectors)


def test_few_videos_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    run("new_a new_b --dim 5 --out f")
    assert "the fitted videos span 3 dimensions only" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a new_b --out f", r"a: has 40 ids, but new_b lacks 40 of them .*has 3 others \(x, y, z\)"),
        ("a b --weights 1 --out f", r"1 weights for 2 embeddings\. Fix: give one weight for each member"),
        ("a b --weights 1 -1 --out f", "0 or more"),
        ("a b --weights 0 0 --out f", "not all 0"),
        ("a b --weights nan 1 --out f", "0 or more"),
        ("a b --dim 0 --out f", "--dim: must be at least 1"),
        ("a b --out b", "is also an input"),
        ("a b --apply c --out c", "c, --out: is also an input"),
        ("a b --out c", r"c, --out: is there already\. Fix: .*--overwrite"),
        ("a b --seed -1 --out f", r"--seed: -1 is below 0"),
        ("a b --fit_on a --out f", "1 embeddings to fit on for 2"),
        ("a b --fit_on b a --out f", "b, --fit_on: is of another model or width than a"),
        ("a b --apply a --out f", r"holds no projection\.json"),
        ("a b --apply a --dim 3 --out f", "own weights and width"),
        ("a b --apply a --weights 1 1 --out f", "own weights and width"),
        ("a missing --out f", "missing: no such embeddings"),
    ],
)
def test_planted_faults_are_named(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(line.split())
    assert not Path("f").exists()


def test_members_swapped_on_apply(tmp_path: Path) -> None:
    run("a b --out f")
    with pytest.raises(UserError, match=r"new_b: has width 4, but member 1 of the projection \(a\) has 6"):
        run("new_b new_a --apply f --out g")


def test_bad_vectors_are_named() -> None:
    vectors = read_embeddings("b").vectors.copy()
    vectors[7] = 0
    write_embeddings("zero", IDS, vectors)
    with pytest.raises(UserError, match=r"zero: 1 embeddings are zero vectors.*: v7"):
        run("a zero --out f")
    write_embeddings("flat", IDS, np.ones((40, 4)))
    with pytest.raises(UserError, match="flat: all 40 embeddings point the same way"):
        run("a flat --out f")


def test_normalized_weights() -> None:
    assert normalized_weights([1, 3], 2) == [0.25, 0.75]


def test_what_is_there_is_replaced_only_when_asked() -> None:
    run("a b --out f")
    before = read_embeddings("f").vectors
    with pytest.raises(UserError, match="is there already"):
        main(["a", "b", "--weights", "3", "1", "--out", "f"])
    np.testing.assert_array_equal(read_embeddings("f").vectors, before)
    run("a b --weights 3 1 --out f --overwrite")
    assert read_embeddings("f").metadata["members"][0]["weight"] == 0.75
    with pytest.raises(UserError, match="is also an input"):  # not even then
        main(["new_a", "new_b", "--apply", "f", "--out", "f", "--overwrite"])
    assert read_embeddings("f").ids == IDS


def test_weights_are_searched_on_scores_of_any_range() -> None:
    pairs = labelled_by("b")
    write_pairs("pairs.tsv", pairs)
    write_pairs("grades.tsv", Pairs(pairs.id1, pairs.id2, 1 + 4 * pairs.score))
    run("a b --search_weights pairs.tsv --out f")
    run("a b --search_weights grades.tsv --out g")
    np.testing.assert_array_equal(read_embeddings("f").vectors, read_embeddings("g").vectors)


def test_too_few_pairs_to_search_on_are_named_with_their_file() -> None:
    write_pairs("pairs.tsv", labelled_by("b").take(range(5)))
    with pytest.raises(UserError, match=r"pairs\.tsv: 5 pairs are too few.* Fix: give 6 pairs or more"):
        main(["a", "b", "--search_weights", "pairs.tsv", "--out", "f"])
    assert not Path("f").exists()
