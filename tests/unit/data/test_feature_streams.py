from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.cowatch_graph import CowatchGraph, on_videos, parts_of
from vidsim.data.embeddings import write_embeddings
from vidsim.data.feature_streams import open_features


def save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def test_streams_of_several_kinds_are_brought_into_one_order(tmp_path: Path) -> None:
    visual = np.arange(12).reshape(4, 3).astype(np.float16)
    audio = np.arange(8).reshape(4, 2).astype(np.float32)
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    write_embeddings(tmp_path / "audio", ["d", "b", "a", "c"], audio)
    features = open_features(
        {"visual": save(tmp_path / "v.npy", visual), "audio": str(tmp_path / "audio")}, str(tmp_path / "ids.txt")
    )
    assert features.ids == ["a", "b", "c", "d"]
    assert features.dims == {"visual": 3, "audio": 2}
    taken = features.take(np.array([3, 0]))
    assert taken["visual"].tolist() == [[9, 10, 11], [0, 1, 2]]
    assert taken["audio"].tolist() == [[0, 1], [4, 5]]
    assert taken["visual"].dtype == np.float32


def test_frames_are_read_as_their_means(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).standard_normal((600, 3, 2)).astype(np.float16)
    features = open_features({"frames": save(tmp_path / "f.npy", frames)})
    assert features.dims == {"frames": 2}
    videos = np.array([599, 0, 300])
    np.testing.assert_allclose(
        features.take(videos)["frames"], frames[videos].astype(np.float32).mean(axis=1), atol=1e-6
    )
    (_, block), *_ = features.blocks(np.arange(600))
    np.testing.assert_allclose(block["frames"], frames.astype(np.float32).mean(axis=1), atol=1e-6)
    frames[401, 2, 1] = np.inf
    with pytest.raises(UserError, match="video 401 holds NaN or infinity"):
        open_features({"frames": save(tmp_path / "f.npy", frames)})


def test_row_numbers_are_ids_where_none_are_given(tmp_path: Path) -> None:
    assert open_features({"v": save(tmp_path / "v.npy", np.zeros((2, 3), dtype=np.float16))}).ids == ["0", "1"]


def test_statistics_are_those_of_the_chosen_videos_and_keep_their_digits(tmp_path: Path) -> None:
    array = (np.random.default_rng(0).standard_normal((50, 4)) + 1e4).astype(np.float32)
    features = open_features({"v": save(tmp_path / "v.npy", array)})
    chosen = np.arange(10, 50)
    mean, deviation = features.statistics(chosen)["v"]
    np.testing.assert_allclose(mean, array[chosen].astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, array[chosen].astype(np.float64).std(0), rtol=1e-5)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    good = save(tmp_path / "good.npy", np.zeros((3, 2), dtype=np.float32))
    bad = np.zeros((3, 2), dtype=np.float32)
    bad[1, 1] = np.nan
    (tmp_path / "ids.txt").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "text.npy").write_text("no", encoding="utf-8")
    for sources, ids, message in (
        ({"v": save(tmp_path / "bad.npy", bad)}, None, "the vector of video 1 holds NaN"),
        ({"v": good, "a": save(tmp_path / "four.npy", np.zeros((4, 2)))}, None, r"lacks 0 \(\) and has 1 others \(3\)"),
        ({"v": good, "a": save(tmp_path / "two.npy", np.zeros((2, 2)))}, None, r"lacks 1 \(2\) and has 0 others"),
        ({"v": good}, str(tmp_path / "ids.txt"), "has 3 rows, but there are 2 ids"),
        ({"v": save(tmp_path / "flat.npy", np.zeros(3))}, None, "must be floats"),
        ({"v": str(tmp_path / "text.npy")}, None, "not a readable array"),
        ({"v-1": good}, None, "no name of a stream"),
        ({}, None, "no stream"),
    ):
        with pytest.raises(UserError, match=message):
            open_features(sources, ids)


def test_the_graph_is_renumbered_and_videos_without_features_are_named(tmp_path: Path) -> None:
    ids = [str(number) for number in range(20)]
    fractions = {"eval_fraction": 0.3, "validation_fraction": 0.1, "seed": 1}
    settings = {"settings": fractions}
    some = ["7", "3", "5"]
    edges = np.array([[0, 1], [1, 2]])
    graph = CowatchGraph(some, parts_of(some, **fractions), edges, np.array([2, 3]), settings)
    features = open_features({"v": save(tmp_path / "v.npy", np.zeros((20, 2), dtype=np.float32))})
    placed = on_videos(graph, features.ids)
    assert placed.ids == ids
    assert placed.edges.tolist() == [[7, 3], [3, 5]]
    assert (placed.part == parts_of(ids, **fractions)).all()
    few = open_features({"v": save(tmp_path / "few.npy", np.zeros((6, 2), dtype=np.float32))})
    with pytest.raises(UserError, match=r"1 of its 3 videos have no features: 7"):
        on_videos(graph, few.ids)
    forged = CowatchGraph(some, (graph.part + 1) % 3, edges, graph.weights, settings)
    with pytest.raises(UserError, match="do not follow"):
        on_videos(forged, features.ids)
