from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vidsim.common.errors import UserError
from vidsim.data.embeddings import write_embeddings
from vidsim.retrieval.build import main as make_index
from vidsim.retrieval.related import main

NUM, DIM, K = 1500, 16, 4  # more than one block


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(NUM, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("related")
    write_embeddings(folder / "emb", [f"v{number}" for number in range(NUM)], vectors)
    for kind in ("exact", "compact", "large"):
        options = ["--kind", kind]
        make_index([str(folder / "emb"), "--out", str(folder / kind), *options])
    return folder


@pytest.mark.parametrize("source", ["emb", "exact", "large", "compact"])
def test_all_videos_have_their_nearest(source: str, folder: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "related.parquet"
    assert main([str(folder / source), "--out", str(out), "-k", str(K)]) == 0
    table = pq.read_table(out)
    assert table.schema.names == ["id", "rank", "related", "score"]
    assert table["id"].to_pylist() == [f"v{number}" for number in range(NUM) for _ in range(K)]
    assert table["rank"].to_pylist() == [1, 2, 3, 4] * NUM
    related = np.array([int(name[1:]) for name in table["related"].to_pylist()]).reshape(NUM, K)
    assert (related != np.arange(NUM)[:, None]).all()
    cosines = (vectors @ vectors.T).astype(np.float64)
    np.fill_diagonal(cosines, -np.inf)
    truth = np.argsort(-cosines, axis=1)[:, :K]
    shared = np.mean([len(set(a) & set(b)) / K for a, b in zip(related.tolist(), truth.tolist(), strict=True)])
    assert shared > {"emb": 0.999, "exact": 0.999, "large": 0.9, "compact": 0.6}[source]
    scores = np.asarray(table["score"]).reshape(NUM, K)
    true_scores = np.take_along_axis(cosines, related, axis=1)
    assert np.abs(scores - true_scores).max() < {"emb": 1e-6, "exact": 1e-6, "large": 0.03, "compact": 0.2}[source]


def test_fewer_videos_than_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_embeddings(tmp_path / "emb.parquet", ["a", "b"], [[1.0, 0.0], [0.6, 0.8]])
    make_index([str(tmp_path / "emb.parquet"), "--out", str(tmp_path / "index")])
    for source in ("emb.parquet", "index"):
        main([str(tmp_path / source), "--out", str(tmp_path / "related.parquet"), "--overwrite"])
        assert "each of 2 videos has 1 others, not 20" in capsys.readouterr().out
        assert pq.read_table(tmp_path / "related.parquet").to_pylist() == [
            {"id": "a", "rank": 1, "related": "b", "score": pytest.approx(0.6)},
            {"id": "b", "rank": 1, "related": "a", "score": pytest.approx(0.6)},
        ]
    with pytest.raises(UserError, match=r"related\.parquet, --out: is there already"):
        main([str(tmp_path / "index"), "--out", str(tmp_path / "related.parquet")])


def test_faults_are_named_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.parquet"):
        main([str(folder / "emb"), "--out", str(tmp_path / "x.csv")])
    with pytest.raises(UserError, match="-k: must be at least 1, not 0"):
        main([str(folder / "emb"), "--out", str(tmp_path / "x.parquet"), "-k", "0"])
    with pytest.raises(UserError, match="no such embeddings folder"):
        main([str(tmp_path / "none"), "--out", str(tmp_path / "x.parquet")])
    assert list(tmp_path.iterdir()) == []
