from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from vidsim.common.errors import UserError
from vidsim.data.embeddings import read_embeddings, write_embeddings
from vidsim.retrieval.recommend import main as recommend
from vidsim.retrieval.recommend_factors import FactorsConfig, factors, main, with_content
from vidsim.retrieval.recommend_histories import Histories

USERS, VIDEOS = 12, 9


@pytest.fixture
def watched() -> np.ndarray:
    """bool [USERS, VIDEOS]; nobody has watched the last."""
    matrix = np.random.default_rng(0).random((USERS, VIDEOS)) < 0.4
    matrix[:, -1] = False
    matrix[:, 0] |= ~matrix.any(axis=1)
    return matrix


def histories(watched: np.ndarray) -> Histories:
    user, video = np.nonzero(watched)
    return Histories.of([str(number) for number in range(len(watched))], user, video)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_products_are_weighted_counts_of_common_users(watched: np.ndarray, power: float) -> None:
    config = FactorsConfig(dim=VIDEOS - 1, user_power=power)
    vectors = factors(histories(watched), VIDEOS, config)
    assert vectors.dtype == np.float32
    assert vectors.shape == (VIDEOS, VIDEOS - 1)
    weights = watched.sum(axis=1, keepdims=True) ** -power
    common = (watched * weights**2).T @ watched.astype(float)
    # All directions but one, which is that of the video nobody watched: nothing is lost.
    assert np.abs(vectors @ vectors.T - common).max() < 1e-5
    assert (vectors[-1] == 0).all()


def test_few_directions_are_the_best_of_that_rank(watched: np.ndarray) -> None:
    vectors = factors(histories(watched), VIDEOS, FactorsConfig(dim=3, user_power=0))
    _, values, rows = np.linalg.svd(watched.astype(float), full_matrices=False)
    best = (rows[:3].T * values[:3] ** 2) @ rows[:3]
    assert np.abs(vectors @ vectors.T - best).max() < 1e-5


def test_content_adds_its_weighted_cosine() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    joined = with_content(first, second, 0.25)
    assert joined.shape == (5, 6)
    assert joined @ joined.T == pytest.approx(first @ first.T + 0.25 * second @ second.T, abs=1e-5)


def test_command(watched: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scipy.sparse.save_npz(tmp_path / "train.npz", scipy.sparse.csr_array(watched.astype(np.int8)))
    content = np.random.default_rng(1).normal(size=(VIDEOS, 4)).astype(np.float32)
    write_embeddings(tmp_path / "content", [str(number) for number in range(VIDEOS)], content)
    arguments = [str(tmp_path / "train.npz"), "--dim", "3", "--out", str(tmp_path / "factors")]
    assert main([*arguments, "--content", str(tmp_path / "content"), "--content_weight", "4"]) == 0
    assert f"{VIDEOS} videos from {USERS} users; 1 are known by their content alone" in capsys.readouterr().out
    written = read_embeddings(tmp_path / "factors")
    own = factors(histories(watched), VIDEOS, FactorsConfig(dim=3))
    assert np.abs(written.vectors[:, :3] - own).max() < 1e-6
    assert np.linalg.norm(written.vectors[:, 3:], axis=1) == pytest.approx(2)
    for name, options in (("default", []), ("dot", ["--similarity", "dot"]), ("cosine", ["--similarity", "cosine"])):
        out = ["--out", str(tmp_path / f"{name}.parquet"), "-k", "3"]
        recommend([str(tmp_path / "factors"), str(tmp_path / "train.npz"), *out, *options])
    scores = {
        name: pq.read_table(tmp_path / f"{name}.parquet")["score"].to_pylist() for name in ("default", "dot", "cosine")
    }
    assert scores["default"] == scores["dot"] != scores["cosine"]
    main([*arguments[:-1], str(tmp_path / "alone")])
    assert read_embeddings(tmp_path / "alone").ids == [str(number) for number in range(VIDEOS - 1)]


def test_faults_are_named(watched: np.ndarray, tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "train.npz", scipy.sparse.csr_array(watched.astype(np.int8)))
    write_embeddings(tmp_path / "content", ["0", "1"], np.ones((2, 2)))
    common = [str(tmp_path / "train.npz"), "--out", str(tmp_path / "factors")]
    for options, message in [
        (["--dim", "0"], "--dim: must be at least 1, not 0"),
        (["--dim", "256"], r"--dim: 256 dimensions from 12 users and 8 videos\. Fix: at most 7"),
        (["--user_power", "-1"], "--user_power: -1 is below 0 or not finite"),
        (["--content_weight", "nan"], "--content_weight: nan is below 0 or not finite"),
        (["--content", str(tmp_path / "content")], "6 watched videos have no embedding: 2, 3, 4, 5, 6 and 1 more"),
    ]:
        with pytest.raises(UserError, match=message):
            main([*common, *options])
    assert not (tmp_path / "factors").exists()
