from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.sparse as sp

from vidsim.common.errors import UserError

NUM_USERS, NUM_VIDEOS = 60, 90


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import recommend_tiktok

    return recommend_tiktok


@pytest.fixture
def source(benchmark: ModuleType, tmp_path: Path) -> object:
    generator = np.random.default_rng(0)
    watched = generator.random((NUM_USERS, NUM_VIDEOS)) < 0.1
    later = (generator.random((NUM_USERS, NUM_VIDEOS)) < 0.03) & ~watched
    for name, matrix in (("trnMat", watched), ("valMat", later)):
        sp.save_npz(tmp_path / f"{name}.npz", sp.csr_array(matrix.astype(np.float32) * 2))
    for name in ("image", "audio"):
        np.save(tmp_path / f"{name}_feat.npy", generator.normal(size=(NUM_VIDEOS, 6)).astype(np.float16))
    return benchmark.read_source(tmp_path)


def test_values_are_0_or_1(source: object) -> None:
    assert set(source.train.data.tolist()) == {1.0}  # type: ignore[attr-defined]
    assert source.content.shape == (NUM_VIDEOS, 12)  # type: ignore[attr-defined]


def test_cold_videos_are_in_no_history(benchmark: ModuleType, source: object) -> None:
    among_cold, among_all = benchmark.cold_tasks(source, 0)
    cold = np.flatnonzero(among_cold.allowed)
    assert 5 < len(cold) < 40
    assert among_all.allowed.all()
    assert among_cold.train[:, cold].nnz == 0
    warm = np.setdiff1d(np.arange(NUM_VIDEOS), cold)
    assert among_cold.truth[:, warm].nnz == 0
    assert (np.diff(among_cold.train.indptr)[among_cold.users] > 0).all()
    assert among_cold.train.nnz + source.train[:, cold].nnz == source.train.nnz  # type: ignore[attr-defined]


def test_vectors_and_scores_rank_alike_and_leave_out_the_watched(benchmark: ModuleType, source: object) -> None:
    task = benchmark.warm_task(source)
    unit = source.content / np.linalg.norm(source.content, axis=1, keepdims=True)  # type: ignore[attr-defined]
    by_vectors = benchmark.by_vectors(task, source.content)  # type: ignore[attr-defined]
    by_items = benchmark.by_items(task, unit @ unit.T)
    assert (by_vectors == by_items).mean() > 0.99  # float32 sums may order what is nearly equal otherwise
    for user, rows in zip(task.users.tolist(), by_vectors, strict=True):
        assert not set(rows.tolist()) & set(task.train[[user]].indices.tolist())


def test_a_ranking_is_computed_once(benchmark: ModuleType, source: object, tmp_path: Path) -> None:
    task = benchmark.warm_task(source)
    rankings = benchmark.Rankings(tmp_path / "rankings")
    first = rankings.get(task, "random", 1, lambda: benchmark.by_random(task, 1))
    again = rankings.get(task, "random", 1, lambda: pytest.fail("computed again"))
    assert (first.recall == again.recall).all()
    # 20 of about 81 videos at random.
    assert first.recall.mean() == pytest.approx(20 / 81, abs=0.12)
    best = rankings.get(task, "truth", 0, lambda: benchmark.by_scores(task, lambda users: task.truth[users].toarray()))
    assert best.recall.mean() == 1
    assert best.ndcg.mean() == 1


def test_a_folder_of_other_settings_is_refused(benchmark: ModuleType, tmp_path: Path) -> None:
    from recommend_towers import require_same_settings

    require_same_settings(tmp_path, {"k": 20, "options": ("a", "b")})
    require_same_settings(tmp_path, {"k": 20, "options": ("a", "b")})
    with pytest.raises(UserError, match="--out: was made with other settings: k"):
        require_same_settings(tmp_path, {"k": 10, "options": ("a", "b")})
