"""The lines of the tables by hand, the chart, and the settings of every cell."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from vidsim.data.cowatch_graph import EVAL, TRAIN, CowatchGraph, read_graph
from vidsim.data.cowatch_queries import related_queries
from vidsim.engine.settings import parse_settings
from vidsim.finetune.cowatch_config import CowatchConfig


@pytest.fixture
def movies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import cowatch_movies

    return cowatch_movies


@pytest.fixture
def tables(movies: ModuleType) -> ModuleType:
    import cowatch_tables

    return cowatch_tables


def metrics(value: float) -> dict[str, np.ndarray]:
    names = ("ndcg@10", "recall@10", "map")
    return {f"{direction} {name}": np.full(4, value) for direction in ("t2e", "e2t") for name in names}


def test_a_line_has_means_intervals_and_the_paired_difference(tables: ModuleType) -> None:
    base = metrics(0.1)
    seeds = [metrics(0.2), metrics(0.4)]
    seeds[0]["t2e ndcg@10"] = np.array([0.0, 0.2, 0.2, 0.4])
    row = tables.row_of("one", seeds, base)
    assert row.means["t2e ndcg@10"] == pytest.approx(0.3)
    assert row.intervals["e2t"] == pytest.approx((0.3, 0.3))
    assert row.intervals["t2e"][0] < 0.3 < row.intervals["t2e"][1]
    assert row.differences["e2t"] == pytest.approx((0.2, 0.2, 0.2))
    assert "| 30.00 [30.00, 30.00], +20.00 [+20.00, +20.00] |" in row.line()
    assert tables.row_of("base", base, base).differences == {}


def test_metrics_of_both_directions(tables: ModuleType) -> None:
    part = np.array([TRAIN, TRAIN, EVAL, EVAL], dtype=np.int8)
    graph = CowatchGraph(list("abcd"), part, np.array([[0, 1], [2, 3]]), np.ones(2), {})
    near = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], dtype=np.float32)
    found = tables.query_metrics(related_queries(graph, 9, 0), near, near)
    assert found["t2e ndcg@10"].tolist() == found["e2t map"].tolist() == [1.0, 1.0]
    turned = tables.query_metrics(related_queries(graph, 9, 0), near, near[::-1])
    assert turned["e2t ndcg@10"] == pytest.approx([1 / np.log2(3)] * 2)


def test_the_chart_is_a_picture_of_its_own(movies: ModuleType, tables: ModuleType, tmp_path: Path) -> None:
    rows = [tables.row_of(str(width), metrics(width / 1000), metrics(0.5)) for width in movies.WIDTHS]
    tables.write_chart(tmp_path / "images" / "widths.svg", movies.WIDTHS, rows)
    root = ElementTree.parse(tmp_path / "images" / "widths.svg").getroot()
    names = [element.tag.rsplit("}", 1)[1] for element in root.iter()]
    assert names.count("circle") == 2 * len(movies.WIDTHS)
    assert "T2E NDCG@10, %" in "".join(root.itertext())


def test_every_cell_is_a_run_that_can_be(movies: ModuleType, tmp_path: Path) -> None:
    for cell in (cell for cells in movies.PARTS.values() for cell in cells):
        assert set(cell.streams) <= set(cell.movies)
        config: CowatchConfig = parse_settings(
            CowatchConfig, cell.arguments(tmp_path), prog="test", description=""
        ).config
        config.validate()
        assert tuple(config.features) == cell.streams


def test_only_movies_with_all_streams_take_part(movies: ModuleType, tmp_path: Path) -> None:
    features = tmp_path / "out" / "features"
    features.mkdir(parents=True)
    np.save(features / "poster.npy", np.eye(5, dtype=np.float16))
    (features / "poster.json").write_text(
        '{"offsets": {"1": [4, 1], "2": [0, 1], "3": [1, 1], "4": [2, 1], "5": [3, 1]}}', encoding="utf-8"
    )
    np.save(features / "trailer.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    (features / "trailer.txt").write_text("1\n2\n3\n9\n", encoding="utf-8")
    watches = [f"{user},{movie},5,{movie}" for user in range(3) for movie in (1, 2, 9, 3, 4)]
    text = "\n".join(["userId,movieId,rating,timestamp", *watches]) + "\n"
    (tmp_path / "ratings.csv").write_text(text, encoding="utf-8")
    movies.write_set(tmp_path, tmp_path / "out", ("poster", "trailer"))
    folder = tmp_path / "out" / "sets" / "poster-trailer"
    assert (folder / "ids.txt").read_text(encoding="utf-8").split() == ["1", "2", "3"]
    assert np.load(folder / "poster.npy").argmax(axis=1).tolist() == [4, 0, 1]
    assert np.load(folder / "trailer.npy").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert read_graph(folder / "graph").ids == ["1", "2", "3"]
