from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.cowatch import main as make_graph
from vidsim.data.cowatch_graph import EVAL, TRAIN, CowatchGraph, read_graph
from vidsim.data.cowatch_queries import related_queries
from vidsim.data.embeddings import Embeddings, read_embeddings, write_embeddings
from vidsim.retrieval.evaluate import aligned_vectors, floors, main, related_values, summary
from vidsim.retrieval.quantization_table import quantization_table
from vidsim.retrieval.vectors import unit_vectors

NUM, DIM, GROUPS = 240, 32, 24


def graph() -> CowatchGraph:
    # Videos 0..3 train, 4..6 eval; 6 has no edge.
    edges = np.array([[0, 0, 1, 2, 4], [1, 4, 4, 5, 5]])
    part = np.where(np.arange(7) >= 4, EVAL, TRAIN).astype(np.int8)
    return CowatchGraph([f"v{number}" for number in range(7)], part, edges, np.ones(5), {})


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_figures_by_hand() -> None:
    queries = related_queries(graph(), 10, 0)
    # t2e: 0 and 1 look for 4, 2 for 5, among 4, 5, 6; e2t: 4 looks for 0 and 1, 5 for 2, among 0, 1, 2, 3.
    vectors = angles(0, 10, 60, 90, 5, 55, 180)
    found = related_values(vectors, vectors, queries, 1)
    assert found["t2e"]["ndcg@1"].tolist() == [1, 1, 1]
    assert found["e2t"]["recall@1"].tolist() == [0.5, 1]
    assert found["e2t"]["map"].tolist() == [1, 1]
    worse = related_values(vectors, angles(0, 10, 60, 90, 180, 55, 5), queries, 1)  # 6 stands where 4 stood
    assert worse["t2e"]["ndcg@1"].tolist() == [0, 0, 1]
    assert worse["t2e"]["map"].tolist() == pytest.approx([1 / 3, 1 / 3, 1])
    rows = summary({"good": found, "bad": worse}, "good")
    [row] = [row for row in rows if (row["name"], row["direction"], row["metric"]) == ("bad", "t2e", "map")]
    assert row["mean"] == pytest.approx(5 / 9)
    assert row["difference"] == pytest.approx(-4 / 9)
    assert row["num_queries"] == 3
    low, high = row["difference_interval"]
    assert low == pytest.approx(-2 / 3)
    assert high == 0
    assert all("difference" not in row for row in rows if row["name"] == "good")


def test_floors_by_hand() -> None:
    found = floors(graph(), related_queries(graph(), 10, 0), 1, seed=0)
    assert set(found["random vectors"]) == {"t2e", "e2t"}
    # 0 and 1 have the only training edge: 4 looks for both, 5 for 2, which stands level with 3, so last.
    assert set(found["most edges in training"]) == {"e2t"}
    assert found["most edges in training"]["e2t"]["map"].tolist() == pytest.approx([1, 1 / 4])


def test_embeddings_are_brought_into_one_order(capsys: pytest.CaptureFixture[str]) -> None:
    first = Embeddings(["a", "b"], 3 * angles(0, 10), name="first")
    more = Embeddings(["c", "b", "a"], angles(50, 30, 20), name="more")
    vectors = aligned_vectors([first, more])
    np.testing.assert_allclose(vectors["first"], angles(0, 10), atol=1e-6)
    np.testing.assert_allclose(vectors["more"], angles(20, 30), atol=1e-6)
    assert capsys.readouterr().err == "more: 1 videos that first does not have are left out\n"
    with pytest.raises(UserError, match="first: has no embedding for 1 of the 3 ids asked for: c"):
        aligned_vectors([more, first])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions inside groups of ten videos, and embeddings that know the groups, with noise."""
    folder = tmp_path_factory.mktemp("evaluate")
    generator = np.random.default_rng(0)
    lines = ["user,video,time"]
    for user in range(1500):
        watched = generator.permutation(10)[:4] * GROUPS + user % GROUPS
        lines += [f"u{user},v{video},{1000 * user + place}" for place, video in enumerate(watched.tolist())]
    (folder / "watches.csv").write_text("\n".join(lines) + "\n")
    assert make_graph([str(folder / "watches.csv"), "--out", str(folder / "graph"), "--min_weight", "1"]) == 0
    centres = generator.normal(size=(GROUPS, DIM))
    vectors = centres[np.arange(NUM) % GROUPS] + 1.1 * generator.normal(size=(NUM, DIM))
    ids = [f"v{video}" for video in range(NUM)]
    # One more that nobody watched is ranked with the others.
    ids, vectors = [*ids, "unseen"], np.concatenate([vectors, -vectors[:1]])
    write_embeddings(folder / "good", ids, vectors)
    write_embeddings(folder / "bad", ids, vectors + 3 * generator.normal(size=vectors.shape))
    return folder


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "good"), str(folder / "bad"), "--graph", str(folder / "graph")]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    rows = {(row["name"], row["direction"], row["metric"]): row for row in json.loads(capsys.readouterr().out)}
    for direction in ("t2e", "e2t"):
        good, bad = (rows[str(folder / name), direction, "ndcg@10"] for name in ("good", "bad"))
        drawn = rows["random vectors", direction, "ndcg@10"]
        assert good["mean"] > bad["mean"] + 0.2 > drawn["mean"] + 0.2
        assert bad["difference"] == pytest.approx(bad["mean"] - good["mean"])
        assert bad["difference_interval"][1] < 0
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("t2e: ")
    assert f"| {folder / 'bad'} less the first | e2t | -0." in out


def test_quantization(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "good"), "--graph", str(folder / "graph"), "--quantization"]
    assert main([*arguments, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["bytes"] for entry in entries] == [128, *[32] * 4, *[16] * 4, *[8] * 4, 16]
    assert entries[0]["t2e"] == {"ndcg": pytest.approx(entries[0]["t2e"]["ndcg"]), "loss": 0, "interval": [0, 0]}
    for direction in ("t2e", "e2t"):
        losses = [entry[direction]["loss"] for entry in entries]
        assert max(abs(loss) for loss in losses[1:5]) < 0.01  # 8 bits
        assert max(losses[5:9]) < 0.05 < losses[-1]  # 4 bits against as many bytes of floats
        for entry in entries:
            low, high = entry[direction]["interval"]
            assert low <= entry[direction]["loss"] <= high
    assert main(arguments) == 0
    assert "| 4 bits, shared levels, query too | 16 | " in capsys.readouterr().out


def test_levels_are_fitted_on_training_videos_only(folder: Path) -> None:
    made = read_graph(folder / "graph")
    vectors = np.random.default_rng(1).normal(size=(len(made.ids), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = related_queries(made, 50, 0)
    without_e2t = {"t2e": queries["t2e"]}
    before = quantization_table([vectors], made, without_e2t, 5).entries
    unasked = np.setdiff1d(np.flatnonzero(made.part != TRAIN), queries["t2e"].candidates)
    vectors[unasked] = 1  # neither asked nor found, and not to be learned from
    assert quantization_table([vectors], made, without_e2t, 5).entries == before
    assert len(unasked) > 0


def test_the_mean_over_several_embeddings(folder: Path) -> None:
    made = read_graph(folder / "graph")
    queries = related_queries(made, 20, 0)
    first, second = (np.random.default_rng(seed).normal(size=(len(made.ids), 8)).astype(np.float32) for seed in (1, 2))
    one, other, both = (
        quantization_table([unit_vectors(vectors, made.ids) for vectors in members], made, queries, 5).entries
        for members in ([first], [second], [first, second])
    )
    for place in range(len(both)):
        for direction in queries:
            mean = (one[place][direction]["ndcg"] + other[place][direction]["ndcg"]) / 2
            assert both[place][direction]["ndcg"] == pytest.approx(mean)
    with pytest.raises(UserError, match=r"field 'embeddings': are of several widths: \[4, 8\]"):
        quantization_table([first, first[:, :4]], made, queries, 5)


def test_faults_are_named(folder: Path) -> None:
    good, made = str(folder / "good"), ["--graph", str(folder / "graph")]
    every = read_embeddings(good)
    few = [row for row, video in enumerate(every.ids) if video != "v7"]
    write_embeddings(folder / "few.parquet", [every.ids[row] for row in few], every.vectors[few])
    for arguments, message in [
        ([good, *made, "-k", "0"], "-k: must be at least 1"),
        ([good, good, *made], "the same embeddings are named twice"),
        ([good, "--graph", good], "holds no co-watch graph"),
        ([str(folder / "few.parquet"), *made], "1 of its 240 videos have no features: v7"),
    ]:
        with pytest.raises(UserError, match=message):
            main(arguments)
