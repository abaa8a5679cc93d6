"""Sessions to edges by hand, the split, whole or nothing, and what is refused."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from vidsim.common.errors import UserError
from vidsim.data import cowatch_links
from vidsim.data.cowatch import CowatchConfig, build_graph, feature_ids, main
from vidsim.data.cowatch_graph import EVAL, TRAIN, VALIDATION, CowatchGraph, parts_of, read_graph, triplets_of
from vidsim.data.cowatch_sessions import SessionColumns

Watch = tuple[str, str, float]


def write(path: Path, watches: list[Watch]) -> Path:
    users, videos, times = (list(column) for column in zip(*watches, strict=True))
    pq.write_table(pa.table({"user": users, "video": videos, "time": times}), path)
    return path


def graph_of(folder: Path, watches: list[Watch], *, rows_per_bucket: int = 10**6, **config: Any) -> CowatchGraph:
    source = write(folder / "watches.parquet", watches)
    settings = CowatchConfig(**{"min_weight": 1, **config})
    build_graph([source], folder / "graph", SessionColumns(), settings, rows_per_bucket=rows_per_bucket)
    return read_graph(folder / "graph")


def edges_of(graph: CowatchGraph) -> dict[tuple[str, str], int]:
    ends = [(graph.ids[one], graph.ids[other]) for one, other in graph.edges.T.tolist()]
    assert len(set(ends)) == len(ends)
    return dict(zip(ends, graph.weights.tolist(), strict=True))


def test_edges_are_between_consecutive_watches_of_one_session(tmp_path: Path) -> None:
    watches = [
        ("u1", "c", 20.0),  # out of order: a, b, c by time
        ("u1", "a", 0.0),
        ("u2", "b", 5.0),
        ("u1", "b", 10.0),
        ("u1", "d", 2000.0),  # 1,980 s after c: another session
        ("u2", "a", 6.0),
        ("u2", "a", 7.0),  # itself: no edge
        ("u3", "e", 7.0),  # alone
    ]
    graph = graph_of(tmp_path, watches)
    assert edges_of(graph) == {("a", "b"): 2, ("b", "c"): 1}
    assert graph.manifest["counts"]["sessions"] == 4
    assert graph.manifest["counts"]["users_or_sessions"] == 3
    assert not list(tmp_path.glob(".*"))  # no temporary folder is left


def test_gap_window_and_threshold(tmp_path: Path) -> None:
    watches = [("u", video, float(second)) for second, video in enumerate("abcab")]
    for number, (config, expected) in enumerate(
        [
            ({}, {("a", "b"): 2, ("b", "c"): 1, ("a", "c"): 1}),
            ({"min_weight": 2}, {("a", "b"): 2}),
            ({"window": 2}, {("a", "b"): 3, ("b", "c"): 2, ("a", "c"): 2}),
            ({"gap": None}, {("a", "b"): 2, ("b", "c"): 1, ("a", "c"): 1}),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert edges_of(graph_of(folder, watches, **config)) == expected
    with pytest.raises(
        UserError, match=r"no pair of videos was watched together with a weight of 1 or more.*\(0 pairs"
    ):
        graph_of(tmp_path, watches, gap=0.5)
    assert not (tmp_path / "graph").exists()


def test_a_session_gives_every_pair_its_share(tmp_path: Path) -> None:
    matrix = scipy.sparse.csr_array(np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]))
    scipy.sparse.save_npz(tmp_path / "m.npz", matrix)
    arguments = [str(tmp_path / "m.npz"), "--unordered", "--weighting", "session", "--min_weight", ".3"]
    assert main([*arguments, "--out", str(tmp_path / "g")]) == 0
    third = pytest.approx(1 / 3, abs=1e-9)
    expected = {("0", "1"): pytest.approx(4 / 3, abs=1e-9)} | {
        pair: third for pair in (("0", "2"), ("0", "3"), ("1", "2"), ("1", "3"), ("2", "3"))
    }
    assert edges_of(read_graph(tmp_path / "g")) == expected
    assert main([*arguments, "--out", str(tmp_path / "h"), "--min_weight", "1"]) == 0
    assert edges_of(read_graph(tmp_path / "h")) == {("0", "1"): pytest.approx(4 / 3, abs=1e-9)}


@pytest.mark.parametrize("unordered", [[], ["--unordered"]])
def test_shares_do_not_depend_on_the_buckets(tmp_path: Path, unordered: list[str]) -> None:
    source = write(tmp_path / "w.parquet", random_watches(600, seed=7))
    columns = SessionColumns(time=None if unordered else "time")
    config = CowatchConfig(min_weight=0.05, weighting="session")
    for name, rows_per_bucket in (("one", 10**6), ("many", 7)):
        build_graph([source], tmp_path / name, columns, config, rows_per_bucket=rows_per_bucket)
    one, many = (read_graph(tmp_path / name) for name in ("one", "many"))
    assert edges_of(one) == edges_of(many)
    assert len(np.unique(one.weights)) > 5


def test_a_session_column_divides_a_users_watches(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text(
        "who,what,when,visit\nu,a,2026-01-01 10:00:00,1\nu,b,2026-01-01 10:00:05,1\nu,c,2026-01-01 10:00:09,2\n"
        "u,d,2026-01-01 10:00:10,2\n",
        encoding="utf-8",
    )
    columns = SessionColumns(user="who", video="what", time="when", session="visit")
    build_graph([tmp_path / "w.csv"], tmp_path / "g", columns, CowatchConfig(min_weight=1))
    assert edges_of(read_graph(tmp_path / "g")) == {("a", "b"): 1, ("c", "d"): 1}


def random_watches(count: int, seed: int) -> list[Watch]:
    generator = np.random.default_rng(seed)
    users, videos = generator.integers(0, 40, count), generator.integers(0, 60, count)
    times = generator.integers(0, 40_000, count)
    return [(f"u{u}", f"v{v}", float(t)) for u, v, t in zip(users, videos, times, strict=True)]


def brute_force(watches: list[Watch], gap: float) -> dict[tuple[str, str], int]:
    result: dict[tuple[str, str], int] = {}
    for user in {watch[0] for watch in watches}:
        mine = sorted((watch for watch in watches if watch[0] == user), key=lambda watch: watch[2])
        for one, other in pairwise(mine):
            if other[2] - one[2] <= gap and one[1] != other[1]:
                pair = (min(one[1], other[1]), max(one[1], other[1]))
                result[pair] = result.get(pair, 0) + 1
    return result


@pytest.mark.parametrize("rows_per_bucket", [7, 10**6])
def test_any_number_of_buckets_gives_the_brute_force_graph(tmp_path: Path, rows_per_bucket: int) -> None:
    watches = random_watches(1500, seed=3)
    graph = graph_of(tmp_path, watches, rows_per_bucket=rows_per_bucket)
    assert edges_of(graph) == brute_force(watches, 1800.0)


@pytest.mark.parametrize("rows_per_bucket", [7, 10**6])
def test_sets_in_any_number_of_buckets_give_the_brute_force_graph(
    tmp_path: Path, rows_per_bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cowatch_links, "_LINKS_AT_ONCE", 50)
    watches = random_watches(600, seed=6)
    source = write(tmp_path / "w.parquet", watches)
    config = CowatchConfig(min_weight=2)
    build_graph([source], tmp_path / "g", SessionColumns(time=None), config, rows_per_bucket=rows_per_bucket)
    counts: dict[tuple[str, str], int] = {}
    for user in {watch[0] for watch in watches}:
        for pair in combinations(sorted({watch[1] for watch in watches if watch[0] == user}), 2):
            counts[pair] = counts.get(pair, 0) + 1
    assert edges_of(read_graph(tmp_path / "g")) == {pair: count for pair, count in counts.items() if count > 1}


def test_no_held_out_video_is_in_any_training_triplet(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, random_watches(3000, seed=4), gap=None)
    counts = graph.manifest["counts"]
    training = graph.training_edges()
    assert len(training) == counts["train_edges"] > 50
    assert 0.15 < counts["eval_videos"] / counts["videos"] < 0.45
    assert counts["validation_videos"] == (graph.part == VALIDATION).sum() > 2
    assert (graph.part == parts_of(graph.ids, 0.3, 0.1, 0)).all()
    ends = graph.part[graph.edges]
    for part, name in ((VALIDATION, "validation"), (EVAL, "eval")):
        assert counts[f"{name}_edges"] == ((ends == TRAIN).any(axis=0) & (ends == part).any(axis=0)).sum() > 10
    edges = {tuple(pair) for pair in graph.edges.T.tolist()}
    previous = None
    for epoch in range(3):
        anchor, positive, negative = triplets_of(graph, training, epoch, seed=1)
        assert (graph.part[[anchor, positive, negative]] == TRAIN).all()
        assert all((min(a, p), max(a, p)) in edges for a, p in zip(anchor, positive, strict=True))
        assert ((negative != anchor) & (negative != positive)).all()
        assert len(np.unique(negative)) > 20
        assert 0 < (anchor < positive).mean() < 1
        assert previous is None or (negative != previous).any()
        previous = negative
    for part in (VALIDATION, EVAL):
        across = np.flatnonzero((ends == part).any(axis=0))
        with pytest.raises(ValueError, match="held-out video"):
            triplets_of(graph, across[:1], 0, 0)


def test_the_split_is_of_the_id_and_the_seed_alone() -> None:
    ids = [f"v{number}" for number in range(4000)]
    part = parts_of(ids, 0.3, 0.1, 5)
    assert abs((part == EVAL).mean() - 0.3) < 0.03
    assert abs((part == VALIDATION).mean() - 0.1) < 0.02
    assert (parts_of(ids[::-1], 0.3, 0.1, 5)[::-1] == part).all()
    assert (parts_of(ids, 0.3, 0.1, 6) != part).any()
    assert ((part == EVAL) <= (parts_of(ids, 0.5, 0.1, 5) == EVAL)).all()  # a larger share only adds
    assert ((part == EVAL) == (parts_of(ids, 0.3, 0.0, 5) == EVAL)).all()  # validation is cut out of train


def test_neighbours_of_the_graph(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, [("u", video, float(second)) for second, video in enumerate("abcdb")])
    near = graph.neighbours()
    assert [near.row(video).tolist() for video in range(4)] == [[1], [0, 2, 3], [1, 3], [1, 2]]
    anchors, candidates = np.array([1, 0, 3, 1]), np.array([2, 2, 1, 0])
    found = {pair for pair in zip(*(part.tolist() for part in near.pairs_within(anchors, candidates)), strict=True)}
    sets = [set(near.row(video).tolist()) for video in range(4)]
    assert found == {(i, j) for i in range(4) for j in range(4) if candidates[j] in sets[anchors[i]]}
    empty = near.pairs_within(np.array([], dtype=np.int64), candidates)
    assert [len(part) for part in empty] == [0, 0]


def test_a_matrix_links_all_videos_of_a_user(tmp_path: Path) -> None:
    matrix = scipy.sparse.csr_array(np.array([[5, 4, 0, 3], [1, 0, 5, 5], [0, 0, 0, 1]]))
    scipy.sparse.save_npz(tmp_path / "m.npz", matrix)
    with pytest.raises(UserError, match=r"no times.*--unordered"):
        build_graph([tmp_path / "m.npz"], tmp_path / "g", SessionColumns(), CowatchConfig())
    config = CowatchConfig(min_weight=1)
    build_graph([tmp_path / "m.npz"], tmp_path / "g", SessionColumns(time=None), config)
    assert edges_of(read_graph(tmp_path / "g")) == {
        ("0", "1"): 1, ("0", "3"): 2, ("1", "3"): 1, ("0", "2"): 1, ("2", "3"): 1,
    }  # fmt: skip
    rated = SessionColumns(time=None, rating="rating", min_rating=4)
    build_graph([tmp_path / "m.npz"], tmp_path / "r", rated, config)
    assert edges_of(read_graph(tmp_path / "r")) == {("0", "1"): 1, ("2", "3"): 1}


def test_a_long_set_is_cut_not_dropped(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "m.npz", scipy.sparse.csr_array(np.ones((1, 10))))
    config = CowatchConfig(min_weight=1, max_session=4)
    build_graph([tmp_path / "m.npz"], tmp_path / "g", SessionColumns(time=None), config)
    graph = read_graph(tmp_path / "g")
    assert graph.manifest["counts"]["sessions"] == 3
    assert sorted(len(graph.neighbours().row(v)) for v in range(10)) == [2] * 6 + [3] * 4
    linked = {frozenset(pair) for pair in edges_of(graph)}
    assert linked != {frozenset(pair) for part in ("0123", "456", "789") for pair in combinations(part, 2)}


@pytest.mark.parametrize("size", range(3, 30))
@pytest.mark.parametrize("max_session", [3, 4, 7])
def test_a_set_is_cut_into_even_parts_and_no_video_is_alone(size: int, max_session: int) -> None:
    key, video = np.zeros(size + 2, dtype=np.int64), np.arange(size + 2)
    key[size:] = 1  # a second set of two
    config = CowatchConfig(max_session=max_session)
    (one, other), _, sessions = cowatch_links.link(key, video, None, config)
    degree = np.bincount(np.concatenate([one, other]), minlength=size + 2)
    assert sessions == -(-size // max_session) + 1
    assert degree[size:].tolist() == [1, 1]
    assert 1 <= degree.min() <= degree.max() < max_session
    assert np.ptp(degree[:size]) <= 1


def test_arrays_of_an_npz_and_of_a_csv_give_the_same_graph(tmp_path: Path) -> None:
    watches = random_watches(300, seed=5)
    users, videos, times = (list(column) for column in zip(*watches, strict=True))
    np.savez(tmp_path / "w.npz", user=users, video=videos, time=times)
    lines = ["user,video,time", *(f"{u},{v},{t}" for u, v, t in watches)]
    (tmp_path / "w.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for suffix in ("npz", "csv"):
        argv = [str(tmp_path / f"w.{suffix}"), "--out", str(tmp_path / suffix), "--min_weight", "1"]
        assert main(argv) == 0
        assert edges_of(read_graph(tmp_path / suffix)) == brute_force(watches, 1800.0)


def test_videos_without_features_are_named_or_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "w.parquet", [("u", video, float(second)) for second, video in enumerate("axbyc")])
    for name, text in (("ids.txt", "a\nb\nc\n"), ("none.txt", "q\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    argv = [str(source), "--out", str(tmp_path / "g"), "--min_weight", "1", "--features"]
    with pytest.raises(UserError, match=r"2 watched videos have no features: x, y.*drop_unknown"):
        main([*argv, str(tmp_path / "ids.txt")])
    with pytest.raises(UserError, match="no watch is left"):
        main([*argv, str(tmp_path / "none.txt"), "--drop_unknown"])
    assert not (tmp_path / "g").exists()
    assert main([*argv, str(tmp_path / "ids.txt"), "--drop_unknown"]) == 0
    graph = read_graph(tmp_path / "g")
    assert edges_of(graph) == {("a", "b"): 1, ("b", "c"): 1}
    assert graph.manifest["counts"]["unknown_watches"] == 2
    np.save(tmp_path / "f.npy", np.zeros((3, 2)))
    assert feature_ids(tmp_path / "f.npy") == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,clip,time\nu,a,1\n", r"field 'video': the column is not there; it holds user, clip, time"),
        ("user,video,time\nu,a,1\nu,,2\n", r"line 3, field 'video': is empty"),
        ("user,video,time\nu,a,1\nu,b,soon\n", r"line 3, field 'time': 'soon' is neither"),
        ("user,video,time\nu,a,nan\n", r"line 2, field 'time': is missing or not finite"),
        ("user,video,time\n", r"holds no watches"),
        ("", r"not a readable table"),
        ("user,video,time\nu,a\n", r"not a readable table"),
    ],
)
def test_bad_tables_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "w.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        build_graph([tmp_path / "w.csv"], tmp_path / "g", SessionColumns(), CowatchConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["w.csv"]


def test_an_existing_folder_and_bad_settings_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "w.parquet", [("u", "a", 0.0), ("u", "b", 1.0)])
    with pytest.raises(UserError, match="is there already"):
        main([str(source), "--out", str(tmp_path)])
    bad = {"gap": "0", "window": "0", "eval_fraction": "1", "validation_fraction": ".7", "max_session": "1"}
    for option, value in ((f"--{name}", value) for name, value in (bad | {"min_weight": "0"}).items()):
        with pytest.raises(UserError, match=option):
            main([str(source), "--out", str(tmp_path / "g"), option, value])
    with pytest.raises(UserError, match="go together"):
        main([str(source), "--out", str(tmp_path / "g"), "--rating", "r"])


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    graph_of(tmp_path, [("u", "a", 0.0), ("u", "b", 1.0)])
    path = tmp_path / "graph" / "edges.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="is not the file"):
        read_graph(tmp_path / "graph")
    with pytest.raises(UserError, match="holds no co-watch graph"):
        read_graph(tmp_path)


@pytest.mark.parametrize("change", [{"files": None}, {"files": {"edges.parquet": {}}}, {"settings": None}])
def test_a_manifest_that_lacks_something_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    graph_of(tmp_path, [("u", "a", 0.0), ("u", "b", 1.0)])
    path = tmp_path / "graph" / "cowatch.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"cowatch\.json, field '(files|settings)'.*Fix: make the graph anew"):
        read_graph(tmp_path / "graph")
