from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from vidsim.data.feature_streams import FeatureStreams, open_features
from vidsim.data.pca import block_pca


@pytest.fixture
def features(tmp_path: Path) -> FeatureStreams:
    generator = np.random.default_rng(0)
    sources = {}
    for name, dim, mean in (("wide", 12, 1000.0), ("narrow", 3, 0.0)):
        made = generator.standard_normal((60, dim)) @ generator.standard_normal((dim, dim)) + mean
        made[40:] += 50  # not to be seen by what is fitted on the others
        np.save(tmp_path / f"{name}.npy", made.astype(np.float32))
        sources[name] = str(tmp_path / f"{name}.npy")
    return open_features(sources)


def test_each_stream_is_scikit_learns_pca_of_the_given_videos(features: FeatureStreams) -> None:
    videos = np.arange(40)
    blocks = block_pca(features, videos, 5)
    for name, block in blocks.items():
        rows = features.take(videos)[name].astype(np.float64)
        reference = PCA(n_components=min(5, rows.shape[1])).fit(rows)
        np.testing.assert_allclose(block.mean, reference.mean_, rtol=1e-9)
        np.testing.assert_allclose(block.variances, reference.explained_variance_ * 39 / 40, rtol=1e-6)
        np.testing.assert_allclose(np.abs(block.directions.T), np.abs(reference.components_), atol=1e-6)
        assert block.explained == pytest.approx(reference.explained_variance_ratio_.sum())
        projected = (rows - block.mean) @ block.directions * block.scale
        assert np.square(projected).sum(axis=1).mean() == pytest.approx(1)
    assert blocks["narrow"].directions.shape == (3, 3)


def test_directions_without_variance_are_not_kept(tmp_path: Path) -> None:
    line = np.outer(np.arange(6), [3.0, 4.0, 0.0]).astype(np.float32)
    np.save(tmp_path / "line.npy", line)
    np.save(tmp_path / "same.npy", np.ones((6, 2), dtype=np.float32))
    streams = open_features({"line": str(tmp_path / "line.npy"), "same": str(tmp_path / "same.npy")})
    blocks = block_pca(streams, np.arange(6), 3)
    np.testing.assert_allclose(blocks["line"].directions, [[0.6], [0.8], [0.0]], atol=1e-9)
    assert blocks["same"].directions.shape == (2, 1)
    assert blocks["same"].scale == 0
