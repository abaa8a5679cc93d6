from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "index_scale.py"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("index_scale", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vectors_and_their_neighbours(
    scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "BLOCK", 70)
    scale.make_vectors(tmp_path / "a.npy", 300, 16, seed=1)
    scale.make_vectors(tmp_path / "b.npy", 300, 16, seed=1)
    vectors = np.load(tmp_path / "a.npy")
    assert vectors.shape == (300, 16)
    assert vectors.tobytes() == np.load(tmp_path / "b.npy").tobytes()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    rows = scale.true_neighbours(vectors, vectors[:20], 7)
    expected = np.argsort(-(vectors[:20] @ vectors.T), axis=1)[:, :7]
    assert np.sort(rows, axis=1).tolist() == np.sort(expected, axis=1).tolist()
    with pytest.raises(SystemExit, match="is of another size"):
        scale.make_vectors(tmp_path / "a.npy", 301, 16, seed=1)


def test_the_whole_run(tmp_path: Path) -> None:
    options = ["--num", "1500", "--dim", "32", "--queries", "30", "--rounds", "2", "--only", "exact", "faiss compact"]
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), *options]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads((tmp_path / "results.json").read_text())["indexes"]
    assert list(results) == ["exact", "faiss compact"]
    assert [len(entry["search"]) for entry in results.values()] == [2, 2]
    assert results["exact"]["search"][0]["recall"] == 1.0
    assert 0.5 < results["faiss compact"]["search"][0]["recall"] < 1
    assert all(20 < entry["build"]["peak_mb"] < 2000 for entry in results.values())
    lines = run.stdout.splitlines()
    assert lines[2].startswith("| exact | 1.000 |")
    assert len({line.count("|") for line in lines}) == 1
