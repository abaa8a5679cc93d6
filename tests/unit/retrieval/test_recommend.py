from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from vidsim.common.errors import UserError
from vidsim.data.embeddings import write_embeddings
from vidsim.retrieval.build import main as make_index
from vidsim.retrieval.recommend import main
from vidsim.retrieval.recommend_factors import main as make_factors

# Unit vectors in the plane: cosines can be read off.
PLANE = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.6, 0.8), "d": (0.8, 0.6), "e": (-1.0, 0.0)}
NUM, DIM, USERS, K = 300, 8, 40, 5


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    write_embeddings(tmp_path / "emb", list(PLANE), list(PLANE.values()))
    return tmp_path


def watches(path: Path, rows: list[tuple[object, ...]], names: tuple[str, ...] = ("user", "video")) -> Path:
    lines = [",".join(names), *(",".join(str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def recommended(folder: Path, *options: str) -> list[tuple[str, int, str, float]]:
    out = folder / "out.parquet"
    assert main([*options, "--out", str(out), "--overwrite"]) == 0
    table = pq.read_table(out)
    assert table.schema.names == ["user", "rank", "id", "score"]
    return [(row["user"], row["rank"], row["id"], round(row["score"], 6)) for row in table.to_pylist()]


def test_average_by_hand(plane: Path) -> None:
    file = watches(plane / "w.csv", [("u", "a"), ("u", "b"), ("v", "e")])
    # u: the mean of a and b is (.5, .5), of length .707, and is not made longer: c .7, d .7, e -.5.
    # v: e itself; b is at right angles to it.
    assert recommended(plane, str(plane / "emb"), str(file), "-k", "3") == [
        ("u", 1, "c", 0.7),
        ("u", 2, "d", 0.7),
        ("u", 3, "e", -0.5),
        ("v", 1, "b", 0.0),
        ("v", 2, "c", -0.6),
        ("v", 3, "d", -0.8),
    ]


def test_max_by_hand(plane: Path) -> None:
    file = watches(plane / "w.csv", [("u", "a"), ("u", "c")])
    # d: .8 to a, .96 to c; b: 0 and .8; e: -1 and -.6.
    expected = [("u", 1, "d", 0.96), ("u", 2, "b", 0.8), ("u", 3, "e", -0.6)]
    assert recommended(plane, str(plane / "emb"), str(file), "-k", "3", "--aggregate", "max") == expected


def test_dot_counts_lengths(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "emb", ["a", "b", "c"], [[1.0, 0.0], [0.9, 0.1], [3.0, 4.0]])
    file = watches(tmp_path / "w.csv", [("u", "a")])
    by_cosine = recommended(tmp_path, str(tmp_path / "emb"), str(file), "-k", "2")
    assert [row[2:] for row in by_cosine] == [("b", pytest.approx(0.993884)), ("c", pytest.approx(0.6))]
    by_dot = recommended(tmp_path, str(tmp_path / "emb"), str(file), "-k", "2", "--similarity", "dot")
    assert [row[2:] for row in by_dot] == [("c", 3.0), ("b", 0.9)]


def test_low_ratings_do_not_count_but_are_not_recommended(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("u", "a", 5), ("u", "d", 1), ("v", "b", 2)]
    file = watches(plane / "w.csv", rows, ("user", "video", "rating"))
    options = ["--rating", "rating", "--min_rating", "4", "-k", "2"]
    assert recommended(plane, str(plane / "emb"), str(file), *options) == [("u", 1, "c", 0.6), ("u", 2, "b", 0.0)]
    assert "left out: 1 users without a video rated high enough: v" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--min_rating: no user has a watch that is rated high enough"):
        main(
            [
                str(plane / "emb"),
                str(file),
                "--rating",
                "rating",
                "--min_rating",
                "6",
                "-k",
                "2",
                "--out",
                str(plane / "x.parquet"),
            ]
        )


def test_only_the_newest_count(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("u", "e", 9), ("u", "a", 2), ("u", "b", 3), ("u", "a", 8)]
    file = watches(plane / "w.csv", rows, ("user", "video", "when"))
    options = [str(plane / "emb"), str(file), "--time", "when", "--last", "1", "-k", "1"]
    assert recommended(plane, *options) == [("u", 1, "c", -0.6)]
    options[5] = "2"  # e and a, which was watched again
    assert recommended(plane, *options) == []  # their mean is 0
    assert "1 users have fewer than 1: nothing else is left, or their history says nothing" in capsys.readouterr().out
    assert recommended(plane, *options, "--aggregate", "max") == [("u", 1, "d", 0.8)]


def test_fewer_than_k_are_left(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = watches(plane / "w.csv", [("u", name) for name in "abcd"])
    assert recommended(plane, str(plane / "emb"), str(file), "-k", "3") == [("u", 1, "e", -0.6)]
    assert "1 users have fewer than 3" in capsys.readouterr().out


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """Embeddings, indexes and a matrix of watches; the vectors, and who watched what bool [USERS, NUM]."""
    folder = tmp_path_factory.mktemp("recommend")
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(NUM, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    watched = generator.random((USERS, NUM)) < generator.random((USERS, 1)) * 0.2 + 0.01
    watched[:, 0] |= ~watched.any(axis=1)
    write_embeddings(folder / "emb", [str(number) for number in range(NUM)], vectors)
    for kind in ("exact", "compact"):
        make_index([str(folder / "emb"), "--out", str(folder / kind), "--kind", kind, "--refine"])
    scipy.sparse.save_npz(folder / "watches.npz", scipy.sparse.csr_array(watched.astype(np.int8)))
    return folder, vectors, watched


def brute_force(vectors: np.ndarray, watched: np.ndarray, aggregate: str) -> tuple[np.ndarray, np.ndarray]:
    cosines = (vectors @ vectors.T).astype(np.float64)
    pick = np.mean if aggregate == "average" else np.max
    scores = np.stack([pick(cosines[row], axis=0) for row in watched])
    scores[watched] = -np.inf
    order = np.argsort(-scores, axis=1)[:, :K]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("aggregate", ["average", "max"])
@pytest.mark.parametrize("source", ["emb", "exact", "compact"])
def test_embeddings_and_index_equal_brute_force(
    source: str, aggregate: str, random: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    folder, vectors, watched = random
    rows = recommended(
        tmp_path, str(folder / source), str(folder / "watches.npz"), "-k", str(K), "--aggregate", aggregate
    )
    order, scores = brute_force(vectors, watched, aggregate)
    assert [row[0] for row in rows] == [str(user) for user in range(USERS) for _ in range(K)]
    found = np.array([int(row[2]) for row in rows]).reshape(USERS, K)
    values = np.array([row[3] for row in rows]).reshape(USERS, K)
    assert not np.take_along_axis(watched, found, axis=1).any()
    if source == "compact":  # codes may miss one
        assert np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), order.tolist(), strict=True)]) > 0.95
    else:
        assert (found == order).all()
        assert np.abs(values - scores).max() < 1e-5


def test_candidates_and_vectors_apart(
    random: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, vectors, watched = random
    fresh = list(range(200, NUM))
    (tmp_path / "fresh.txt").write_text("\n".join(map(str, fresh)) + "\n")
    write_embeddings(tmp_path / "fresh", [str(number) for number in fresh], vectors[200:])
    make_index([str(tmp_path / "fresh"), "--out", str(tmp_path / "index")])
    file, options = str(folder / "watches.npz"), ["-k", "4"]
    allowed = recommended(tmp_path, str(folder / "emb"), file, *options, "--candidates", str(tmp_path / "fresh.txt"))
    assert {int(row[2]) for row in allowed} <= set(fresh)
    for source in ("fresh", "index"):
        apart = recommended(tmp_path, str(tmp_path / source), file, *options, "--history_vectors", str(folder / "emb"))
        assert [row[:3] for row in apart] == [row[:3] for row in allowed]
    assert not any(watched[int(row[0]), int(row[2])] for row in allowed)
    (tmp_path / "fresh.txt").write_text("1\nzz\n")
    with pytest.raises(UserError, match="1 candidates have no embedding: zz"):
        main(
            [
                str(folder / "emb"),
                file,
                "--out",
                str(tmp_path / "x.parquet"),
                "--candidates",
                str(tmp_path / "fresh.txt"),
            ]
        )


def test_results_do_not_depend_on_blocks(
    random: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = random
    arguments = [str(folder / "emb"), str(folder / "watches.npz"), "-k", "7"]
    whole = recommended(tmp_path, *arguments)
    monkeypatch.setattr("vidsim.retrieval.recommend._BLOCK_USERS", 3)
    monkeypatch.setattr("vidsim.retrieval.recommend._BLOCK_WATCHES", 50)
    monkeypatch.setattr("vidsim.retrieval.recommend_scoring._BLOCK_SCORES", NUM)
    assert recommended(tmp_path, *arguments) == whole


def test_one_user(
    random: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, watched = random
    file = str(folder / "watches.npz")
    table = [row for row in recommended(tmp_path, str(folder / "emb"), file, "-k", "3") if row[0] == "7"]
    capsys.readouterr()
    assert main([str(folder / "emb"), file, "--user", "7", "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"7, after {watched[7].sum()} watched"
    assert [line.split()[2] for line in lines[1:]] == [row[2] for row in table]
    history = [str(number) for number in np.flatnonzero(watched[7])]
    assert main([str(folder / "exact"), "--history", *history, "-k", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == lines[1:]
    with pytest.raises(UserError, match=r"--user: the user 'nobody' has no history; it holds 40 users: 0, 1, 2"):
        main([str(folder / "emb"), file, "--user", "nobody"])


def test_titles_are_printed(small_data: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    ids = [str(number) for number in range(24)]
    write_embeddings(tmp_path / "emb", ids, generator.normal(size=(24, 4)))
    videos = small_data.videos  # type: ignore[attr-defined]
    main([str(tmp_path / "emb"), "--history", "1", "2", "-k", "2", "--data", str(small_data.folder / "videos")])  # type: ignore[attr-defined]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "after 2 watched"
    assert lines[1].split()[:2] == ["watched", "1"]
    titles = dict(zip(ids, [row["title"] for row in videos.read(list(range(24)), ["title"])], strict=True))
    for line in lines[1:3]:
        assert line.endswith(titles[line.split()[1]])
    for line in lines[3:]:
        assert line.endswith(titles[line.split()[2]])


def test_truth_is_scored(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = watches(plane / "w.csv", [("u", "a"), ("v", "e")])
    later = watches(plane / "later.csv", [("u", "c"), ("v", "d"), ("new", "a")])
    recommended(plane, str(plane / "emb"), str(file), "-k", "2", "--truth", str(later))
    lines = capsys.readouterr().out.splitlines()[1:]
    # u: d, c: found at 2. v: b, c: not found. new: nothing is recommended.
    assert lines[0] == "3 users watched something later; nothing was recommended to 1 of them, they count as 0"
    assert lines[1].startswith(f"Recall@2   {1 / 3:.4f} [")
    assert lines[2].startswith(f"NDCG@2     {1 / np.log2(3) / 3:.4f} [")
    assert lines[3].startswith(f"MAP@2      {1 / 6:.4f} [")


def test_faults_are_named_and_leave_nothing(plane: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    emb, file = str(plane / "emb"), str(watches(plane / "w.csv", [("u", "a"), ("u", "zz"), ("v", "yy")]))
    out = tmp_path_factory.mktemp("out")
    to_file = ["--out", str(out / "x.parquet"), "-k", "2"]
    cases = [
        ([emb, file, *to_file], r"w\.csv: 2 watched videos have no embedding: yy, zz\. Fix: .*--drop_unknown"),
        ([emb, file, *to_file, "-k", "0"], "-k: must be at least 1, not 0"),
        ([emb, file, *to_file, "-k", "6"], "-k: 6 are asked for, only 5 videos may be recommended"),
        ([emb, file, "--out", str(out / "x.csv")], r"must end in \.parquet"),
        ([emb, file], "--out, --user, --history: give one of them"),
        ([emb, *to_file], "field 'histories': which file holds the watches"),
        ([emb, file, "--history", "a"], "--history: says all of the history"),
        ([emb, "--history", "a", "zz", "b", "-k", "1"], "--history: 1 videos have no embedding: zz"),
        ([emb, file, *to_file, "--rating", "r"], "--min_rating: --rating and --min_rating go together"),
        ([emb, file, *to_file, "--last", "3"], "--last: needs times"),
        ([emb, file, "--user", "u", "--truth", file], "--truth: goes with --out"),
        ([emb, str(plane / "none.csv"), *to_file], r"none\.csv: no such file"),
        (
            [emb, file, *to_file, "--user_column", "who"],
            "field 'who': the column is not there.*with --user_column, --video",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            main(arguments)
    assert list(out.iterdir()) == []


def test_unknown_videos_may_be_left_out(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = watches(plane / "w.csv", [("u", "a"), ("u", "zz"), ("v", "yy"), ("u", "zz")])
    rows = recommended(plane, str(plane / "emb"), str(file), "-k", "1", "--drop_unknown")
    assert rows == [("u", 1, "d", 0.8)]
    assert "left out: 3 watches of videos without an embedding" in capsys.readouterr().out
    only = watches(plane / "w2.csv", [("v", "yy")])
    with pytest.raises(UserError, match=r"w2\.csv: holds no watch of a video that is there"):
        main([str(plane / "emb"), str(only), "--drop_unknown", "--out", str(plane / "x.parquet"), "-k", "1"])


def test_vectors_that_do_not_fit(plane: Path) -> None:
    file = str(watches(plane / "w.csv", [("u", "a")]))
    write_embeddings(plane / "wide", ["a"], [[1.0, 0.0, 0.0]])
    make_index([str(plane / "emb"), "--out", str(plane / "index")])
    for source in ("emb", "index"):
        with pytest.raises(UserError, match=r"wide, --history_vectors: is of width 3, .* of 2"):
            main([str(plane / source), file, "--user", "u", "-k", "1", "--history_vectors", str(plane / "wide")])
    with pytest.raises(UserError, match="collections/x: histories are not sent to a server"):
        main(["http://localhost:1/collections/x", file, "--user", "u", "-k", "1"])
    write_embeddings(plane / "one", ["a"], [[1.0, 0.0]], {"model": "x"})
    write_embeddings(plane / "other", ["a"], [[1.0, 0.0]], {"model": "y"})
    with pytest.raises(UserError, match=r"other, --history_vectors: is of another model than .*one"):
        main([str(plane / "one"), file, "--user", "u", "-k", "1", "--history_vectors", str(plane / "other")])
    with pytest.raises(UserError, match="--similarity: an index holds unit vectors"):
        main([str(plane / "index"), file, "--user", "u", "-k", "1", "--similarity", "dot"])


def test_parquet_watches_of_many_blocks(tmp_path: Path) -> None:
    """A user's watches may stand anywhere in the file."""
    generator = np.random.default_rng(1)
    write_embeddings(tmp_path / "emb", [f"v{n}" for n in range(50)], generator.normal(size=(50, 4)))
    user, video = generator.integers(0, 30, 2000), generator.integers(0, 20, 2000)
    table = pa.table({"user": [f"u{n}" for n in user], "video": [f"v{n}" for n in video]})
    pq.write_table(table, tmp_path / "one.parquet")
    order = np.argsort(user, kind="stable")
    pq.write_table(table.take(order[:900]), tmp_path / "first.parquet")
    pq.write_table(table.take(order[900:]), tmp_path / "second.parquet")
    one = recommended(tmp_path, str(tmp_path / "emb"), str(tmp_path / "one.parquet"))
    two = recommended(
        tmp_path, str(tmp_path / "emb"), str(tmp_path / "first.parquet"), str(tmp_path / "second.parquet")
    )
    assert sorted(one) == sorted(two)
    assert len({row[0] for row in one}) == 30


def test_nothing_is_replaced_unasked_and_truth_is_read_first(plane: Path) -> None:
    watches, emb, out = plane / "w1.csv", str(plane / "emb"), plane / "kept.parquet"
    watches.write_text("user,video\nann,a\n", encoding="utf-8")
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"kept\.parquet, --out: is there already\. Fix: .*--overwrite"):
        main([emb, str(watches), "--out", str(out), "-k", "1"])
    assert out.read_bytes() == b"mine"
    fresh = plane / "fresh.parquet"
    with pytest.raises(UserError, match="none"):
        main([emb, str(watches), "--out", str(fresh), "-k", "1", "--truth", str(plane / "none.csv")])
    assert not fresh.exists()
    with pytest.raises(UserError, match=r"kept\.parquet.*is there already"):
        make_factors([str(watches), "--out", str(out), "--dim", "1"])
