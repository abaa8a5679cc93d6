from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings, write_embeddings
from vidsim.data.pair_cosines import cosines_of_pairs, pair_cosines
from vidsim.data.pairs import Pairs, write_pairs
from vidsim.ensemble.score import Score, main, read_groups, score_cosines, table


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32) * 2


# Cosines to "a": b .5, c 0, d -.5; ranks of the predictions 3, 2, 1.
FOUR = Embeddings(list("abcd"), angles(0, 60, 90, 120), name="emb/four")


def pairs_of(*rows: tuple[str, str, float]) -> Pairs:
    return Pairs([row[0] for row in rows], [row[1] for row in rows], np.array([row[2] for row in rows]))


THREE = pairs_of(("a", "b", 0.9), ("a", "c", 0.2), ("a", "d", 0.4))


def random_case(num_videos: int = 60, num_pairs: int = 200) -> tuple[Embeddings, Pairs]:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((num_videos, 5)).astype(np.float32)
    # Distinct pairs of distinct videos: nothing ties, so rounding cannot change a rank.
    rows = np.stack(np.triu_indices(num_videos, 1))[:, generator.permutation(1770)[:num_pairs]]
    score = np.clip(np.round((pair_cosines(vectors, *rows) + generator.standard_normal(num_pairs)) * 10) / 20, 0, 1)
    ids = [f"v{i}" for i in range(num_videos)]
    return Embeddings(ids, vectors, name="emb/r"), Pairs([ids[i] for i in rows[0]], [ids[i] for i in rows[1]], score)


def score_embeddings(
    embeddings: Sequence[Embeddings], pairs: Pairs, *, num_resamples: int = 1000, seed: int = 0
) -> list[Score]:
    cosines = [cosines_of_pairs(each, pairs) for each in embeddings]
    names = [each.name for each in embeddings]
    return score_cosines(cosines, names, pairs, num_resamples=num_resamples, seed=seed)


def test_hand_computed_spearman_mse_and_pearson() -> None:
    [score] = score_embeddings([FOUR], THREE, num_resamples=0)
    # Ranks: predictions 3, 2, 1; labels 3, 1, 2. rho = 1 - 6 (0 + 1 + 1) / (3 * 8) = .5
    assert score.spearman == pytest.approx(0.5)
    # Clipped cosines .5, 0, 0 against .9, .2, .4: (.16 + .04 + .16) / 3
    assert score.mse == pytest.approx(0.12, abs=1e-6)
    # Cosines .5, 0, -.5 and labels .9, .2, .4 (mean .5): .25 / sqrt(.5 * .26)
    assert score.pearson == pytest.approx(0.25 / np.sqrt(0.5 * 0.26), abs=1e-6)
    assert score.tie_ceiling == pytest.approx(1)
    assert (score.num_pairs, score.interval, score.difference) == (3, None, None)


def test_hand_computed_ties() -> None:
    pairs = pairs_of(("a", "b", 1.0), ("a", "c", 0.0), ("a", "d", 0.0))
    [score] = score_embeddings([FOUR], pairs, num_resamples=0)
    # Label ranks 3, 1.5, 1.5 against 3, 2, 1: 1.5 / sqrt(2 * 1.5); also the ceiling, as the order is right.
    assert score.spearman == pytest.approx(1.5 / np.sqrt(3))
    assert score.tie_ceiling == pytest.approx(score.spearman)


def test_equal_to_scipy_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    emb, pairs = random_case()
    monkeypatch.setattr("vidsim.data.pair_cosines._BLOCK_ROWS", 7)
    vectors = dict(zip(emb.ids, emb.vectors.astype(np.float64), strict=True))
    one_by_one = [
        vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])
        for a, b in zip(pairs.id1, pairs.id2, strict=True)
    ]
    np.testing.assert_allclose(cosines_of_pairs(emb, pairs), np.clip(one_by_one, -1, 1), atol=1e-12)
    [score] = score_embeddings([emb], pairs, num_resamples=0)
    assert score.spearman == pytest.approx(spearmanr(one_by_one, pairs.score).statistic, abs=1e-12)


def test_interval_and_paired_difference() -> None:
    emb, pairs = random_case()
    noise = np.random.default_rng(1).standard_normal(emb.vectors.shape).astype(np.float32)
    worse = Embeddings(emb.ids, emb.vectors + noise, name="emb/worse")
    first, second = score_embeddings([emb, worse], pairs, num_resamples=200, seed=1)
    assert first.interval is not None
    assert first.interval[0] < first.spearman < first.interval[1]
    assert first.difference is None
    assert second.difference == pytest.approx(second.spearman - first.spearman)
    assert second.difference_interval is not None
    assert second.difference_interval[0] < second.difference < second.difference_interval[1]
    assert score_embeddings([emb, worse], pairs, num_resamples=200, seed=1)[1] == second
    same = score_embeddings([emb, emb], pairs, num_resamples=20)[1]
    assert (same.difference, same.difference_interval) == (0, (0, 0))
    assert "emb/worse" in table([first, second])


@pytest.mark.parametrize(
    ("emb", "pairs", "message"),
    [
        (FOUR, pairs_of(("a", "b", 0.1), ("a", "c", 0.2)), "2 pairs, but a correlation needs at least 3"),
        (
            FOUR,
            pairs_of(("a", "b", 0.1), ("a", "c", 0.1), ("a", "d", 0.1)),
            "constant labels: all 3 scores are 0.1",
        ),
        (
            Embeddings(list("abcd"), np.ones((4, 3), np.float32), name="e"),
            THREE,
            "e: constant predictions: all 3",
        ),
        (
            Embeddings(list("ab"), angles(0, 1), name="e"),
            THREE,
            "no embedding for 2 of the 4 ids asked for: c, d",
        ),
        (
            Embeddings(list("abcd"), np.eye(4, 2, dtype=np.float32), name="e"),
            THREE,
            "2 embeddings are zero vectors.*c, d.* Fix: embed these videos again, or leave their pairs out",
        ),
    ],
)
def test_planted_faults_are_named(emb: Embeddings, pairs: Pairs, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_embeddings([emb], pairs)


def test_constant_within_rounding_is_constant() -> None:
    vectors = (np.full((4, 3), 0.1) * np.array([[1], [3], [7], [0.3]])).astype(np.float32)
    with pytest.raises(UserError, match="constant predictions"):
        score_embeddings([Embeddings(list("abcd"), vectors)], THREE)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emb, pairs = random_case()
    write_embeddings(tmp_path / "a", emb.ids, emb.vectors)
    write_embeddings(tmp_path / "b", emb.ids[::-1], -emb.vectors[::-1])  # the same cosines, another order
    write_pairs(tmp_path / "pairs.tsv", pairs)
    (tmp_path / "groups.tsv").write_text("".join(f"v{i}\t{'even' if i % 2 == 0 else 'odd'}\n" for i in range(60)))
    arguments = [str(tmp_path / name) for name in ("a", "b", "pairs.tsv")]
    arguments += [
        "--by",
        str(tmp_path / "groups.tsv"),
        "--json",
        str(tmp_path / "out.json"),
        "--bootstrap",
        "20",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "even | odd" in out
    assert "predictions without ties reach at most 0.9" in out
    scores = json.loads((tmp_path / "out.json").read_text())["scores"]
    assert [score["group"] for score in scores] == ["all"] * 2 + ["even"] * 2 + ["even | odd"] * 2 + ["odd"] * 2
    assert sum(score["num_pairs"] for score in scores[2::2]) == 200
    assert scores[1]["difference"] == pytest.approx(0, abs=1e-9)
    expected = spearmanr(cosines_of_pairs(emb, pairs), pairs.score).statistic
    assert scores[0]["spearman"] == pytest.approx(expected, abs=1e-12)


def test_group_without_a_score_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_embeddings(tmp_path / "a", FOUR.ids, FOUR.vectors)
    write_pairs(tmp_path / "p.tsv", THREE)
    (tmp_path / "g.tsv").write_text("a\tx\nb\tx\nc\tx\nd\ty\n")
    arguments = [
        str(tmp_path / "a"),
        str(tmp_path / "p.tsv"),
        "--bootstrap",
        "0",
        "--by",
        str(tmp_path / "g.tsv"),
    ]
    assert main(arguments) == 0
    assert "group x | y has no score: pairs (x | y): 1 pairs" in capsys.readouterr().out
    (tmp_path / "g.tsv").write_text("a\tx\nb\tx\n")
    match = r"g\.tsv, --by: 2 videos of the pairs have no group: c, d\. Fix: add a line `id<TAB>group` for each"
    with pytest.raises(UserError, match=match):
        main(arguments)
    (tmp_path / "g.tsv").write_text("a\tx\na\tx\n")
    with pytest.raises(UserError, match="line 2: the id a stands twice"):
        main(arguments)


def test_imports_no_torch() -> None:
    names = "ensemble.score ensemble.fuse ensemble.submission ensemble.weight_search retrieval.search"
    code = "".join(f"import vidsim.{name}\n" for name in names.split())
    code += "import sys; print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_groups_are_read_as_other_lists_are(tmp_path: Path) -> None:
    # A byte order mark, line ends of Windows, and a group with a character that only str.splitlines ends a line at.
    (tmp_path / "g.tsv").write_bytes("\ufeffv1\tx\r\nv2\ta\u2028b\r\n".encode())
    assert read_groups(tmp_path / "g.tsv") == {"v1": "x", "v2": "a\u2028b"}
    (tmp_path / "g.tsv").write_text("v1\tx\n\nv2\ty\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"g\.tsv, line 2: must be an id, a tab and a group"):
        read_groups(tmp_path / "g.tsv")


def test_one_first_video_gives_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emb, _ = random_case()
    score = np.random.default_rng(2).random(29)
    write_embeddings(tmp_path / "a", emb.ids, emb.vectors)
    write_pairs(tmp_path / "pairs.tsv", Pairs([emb.ids[0]] * 29, emb.ids[1:30], score))
    words = [str(tmp_path / "a"), str(tmp_path / "pairs.tsv"), "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    assert "No interval: " in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["scores"][0]["interval"] is None


def test_settings_that_are_too_small_are_named(tmp_path: Path) -> None:
    for option in ("--seed", "--bootstrap"):
        with pytest.raises(UserError, match=f"{option}: -1 is below 0"):
            main([str(tmp_path / "a"), str(tmp_path / "pairs.tsv"), option, "-1"])
