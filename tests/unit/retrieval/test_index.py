from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from vidsim.common.errors import UserError
from vidsim.retrieval.exact import ExactIndex
from vidsim.retrieval.index import Found, VectorIndex
from vidsim.retrieval.quantization import fit_quantizer

NUM, DIM = 900, 24
SETTINGS = [
    pytest.param({"kind": "exact"}, id="exact"),
    pytest.param({"kind": "compact"}, id="compact"),
    pytest.param({"kind": "compact", "refine": True}, id="compact-refine"),
    pytest.param({"kind": "large", "num_candidates": 20}, id="large"),
    pytest.param({"kind": "large", "num_candidates": 20, "refine": True}, id="large-refine"),
]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make(num: int = NUM, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    topics = np.random.default_rng(99).normal(size=(30, DIM))
    return unit(topics[generator.integers(0, 30, num)] + 0.6 * generator.normal(size=(num, DIM)))


def names(num: int, prefix: str = "v") -> list[str]:
    return [f"{prefix}{number}" for number in range(num)]


def recall(found: Found, truth: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.rows.tolist(), truth.tolist(), strict=True)])
    )


def best(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1, kind="stable")[:, :k]


# What each kind must find of the true ten best of these vectors.
LEAST = {"exact": 1.0, "compact": 0.8, "compact-refine": 0.99, "large": 0.96, "large-refine": 0.98}


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_found_and_how_similar(settings: dict[str, object], request: pytest.FixtureRequest) -> None:
    vectors, queries = make(), make(40, seed=5)
    index = VectorIndex.build(names(NUM), 3 * vectors, **settings)  # type: ignore[arg-type]
    assert (len(index), index.dim) == (NUM, DIM)
    found = index.search(queries, 10)
    assert recall(found, best(vectors, queries, 10)) >= LEAST[request.node.callspec.id]
    cosines = np.einsum("qkd,qd->qk", vectors[found.rows], queries)
    assert np.abs(found.scores - cosines).max() < (1e-6 if index.refines else 0.12)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert found.lists()[3][2] == (f"v{found.rows[3, 2]}", pytest.approx(found.scores[3, 2]))
    for number in (0, 39):  # one by one as in a batch
        alone = index.search(queries[number : number + 1], 10)
        assert alone.rows.tolist() == found.rows[number : number + 1].tolist()
        np.testing.assert_allclose(alone.scores, found.scores[number : number + 1], atol=1e-6)


def test_exact_is_the_numpy_search_to_the_bit() -> None:
    vectors = make()
    vectors[100:160] = vectors[7]  # more copies than the margin
    index, reference = VectorIndex.build(names(NUM), vectors), ExactIndex(names(NUM), vectors)
    own = np.arange(0, NUM, 3)
    rows, scores = reference.search(vectors[own], 10, exclude=own)
    found = index.search(vectors[own], 10, exclude=own[:, None].tolist())
    assert found.rows.tolist() == rows.tolist()
    assert found.scores.tobytes() == scores.tobytes()
    assert index.search(vectors[7:8], 4).rows[0].tolist() == [7, 100, 101, 102]


@pytest.mark.parametrize("settings", SETTINGS)
def test_adding_and_removing_is_as_if_built_so(settings: dict[str, object], tmp_path: Path) -> None:
    vectors, later = make(), make(300, seed=3)
    index = VectorIndex.build(names(NUM), vectors, **settings)  # type: ignore[arg-type]
    gone = [f"v{number}" for number in [0, 4, 31, 32, 33, *range(500, 700), NUM - 1]]
    index.remove(gone)
    index.add(names(200, "w"), later[:200])
    index.save(tmp_path / "index")
    index = VectorIndex.load(tmp_path / "index")
    index.remove(["w0", "v1"])
    index.add(["v0", *names(100, "x")], np.concatenate([vectors[:1], later[200:]]))
    index.add([], np.zeros((0, DIM)))

    everything = np.concatenate([vectors, later])
    source = dict(zip([*names(NUM), *names(200, "w"), *names(100, "x")], everything, strict=True))
    removed = {*gone, "w0", "v1"}
    ids = [video for video in [*names(NUM), *names(200, "w")] if video not in removed] + ["v0", *names(100, "x")]
    assert index.ids.to_pylist() == ids
    there = np.stack([source[video] for video in ids])
    decoded = index.vectors_of(np.arange(len(ids)))
    cosines = np.einsum("nd,nd->n", decoded, there)
    assert cosines.min() > (1 - 1e-6 if index.refines else 0.97)
    assert (index.search(there, 1).rows[:, 0] == np.arange(len(ids))).mean() > 0.99
    assert recall(index.search(there[-301:], 10), best(there, there[-301:], 10)) > 0.75


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_saved_index_finds_the_same(settings: dict[str, object], mmap: bool, tmp_path: Path) -> None:
    vectors, queries = make(), make(20, seed=5)
    metadata = pa.table({"length": list(range(NUM))})
    index = VectorIndex.build(names(NUM), vectors, metadata=metadata, info={"model": "m"}, **settings)  # type: ignore[arg-type]
    index.vectors_of(np.arange(3))
    index.save(tmp_path / "index")
    again = VectorIndex.load(tmp_path / "index", mmap=mmap)
    assert (again.kind, again.info, len(again), again.dim) == (index.kind, {"model": "m"}, NUM, DIM)
    assert again.metadata == metadata
    for where in (None, pc.field("length") < 200):
        first, second = index.search(queries, 7, where=where), again.search(queries, 7, where=where)
        assert first.rows.tolist() == second.rows.tolist()
        assert first.scores.tobytes() == second.scores.tobytes()
    rows = np.array([5, 0, 800])
    assert again.vectors_of(rows).tobytes() == index.vectors_of(rows).tobytes()
    if mmap:
        with pytest.raises(UserError, match="memory-mapped and cannot be changed"):
            again.remove(["v1"])
        with pytest.raises(UserError, match="memory-mapped and cannot be changed"):
            again.add(["z"], vectors[:1])


@pytest.mark.parametrize("settings", SETTINGS)
def test_building_twice_gives_the_same(settings: dict[str, object]) -> None:
    vectors, queries = make(), make(20, seed=5)
    first, second = (VectorIndex.build(names(NUM), vectors, **settings).search(queries, 9) for _ in range(2))  # type: ignore[arg-type]
    assert first.rows.tobytes() == second.rows.tobytes()
    assert first.scores.tobytes() == second.scores.tobytes()


@pytest.mark.parametrize("settings", SETTINGS)
def test_filters_return_all_there_is(settings: dict[str, object]) -> None:
    vectors, queries = make(), make(30, seed=5)
    metadata = pa.table({"category": [number % 50 for number in range(NUM)], "lang": ["en", "zh", None] * (NUM // 3)})
    index = VectorIndex.build(names(NUM), vectors, metadata=metadata, **settings)  # type: ignore[arg-type]
    chosen = np.arange(NUM)[3::50]
    found = index.search(queries, 100, where=pc.field("category") == 3)
    assert [sorted(rows) for rows in found.rows.tolist()] == [chosen.tolist()] * len(queries)
    some = ["v3", "v53", "v4", "v103"]
    found = index.search(queries, 5, among=some, where=pc.field("category") == 3)
    assert [sorted(rows) for rows in found.rows.tolist()] == [[3, 53, 103]] * len(queries)
    found = index.search(queries, 5, among=some, exclude=[[53], *[[]] * 29])
    assert sorted(found.rows[0].tolist()) == [-1, 3, 4, 103]
    assert found.scores[0, -1] == -np.inf
    assert len(found.lists()[0]) == 3
    assert sorted(found.rows[1].tolist()) == [3, 4, 53, 103]
    spoken = pc.field("lang") == "zh"
    found = index.search(queries, 10, where=spoken)
    assert (found.rows % 3 == 1).all()
    truth = best(vectors[1::3], queries, 10) * 3 + 1
    assert recall(found, truth) > 0.75
    assert index.search(queries, 3, among=[]).rows.shape == (30, 0)
    assert index.search(queries, 10_000).rows.shape == (30, NUM)
    assert (index.search(queries, 10_000).rows >= 0).all()


def test_compact_takes_half_a_byte_for_each_dimension(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(4096, 64)))
    VectorIndex.build(names(4096), vectors, kind="compact").save(tmp_path / "index")
    (codes,) = (tmp_path / "index").glob("codes-*.faiss")
    assert codes.stat().st_size < 4096 * (32 + 8) + 10_000  # 8 bytes for the key


def test_faults_of_arguments_are_named() -> None:
    vectors = make(60)
    index = VectorIndex.build(names(60), vectors, metadata=pa.table({"n": list(range(60))}))
    with pytest.raises(UserError, match="queries have width 5, the index 24"):
        index.search(np.ones((1, 5)), 1)
    with pytest.raises(UserError, match="-k: must be at least 1"):
        index.search(vectors[:1], 0)
    with pytest.raises(UserError, match=r"1 vectors are zero or not finite: query 1"):
        index.search([[1.0] * DIM, [0.0] * DIM], 1)
    with pytest.raises(UserError, match=r"1 ids are not among the 60 of the index: v99\. Fix: did you mean v9"):
        index.remove(["v1", "v99"])
    assert len(index) == 60
    with pytest.raises(UserError, match=r"No match for FieldRef.Name\(m\).*Fix: the metadata columns are: n"):
        index.search(vectors[:1], 1, where=pc.field("m") == 1)
    more = pa.table({"n": [1]})
    with pytest.raises(UserError, match=r"vectors are \[1, 5\], the index is of width 24"):
        index.add(["a"], np.ones((1, 5)), more)
    with pytest.raises(UserError, match=r"1 ids are in the index already: v3\. Fix: remove them first"):
        index.add(["v3"], vectors[:1], more)
    with pytest.raises(UserError, match="1 ids occur more than once: a"):
        index.add(["a", "a"], vectors[:2], pa.table({"n": [1, 2]}))
    with pytest.raises(UserError, match="1 vectors are zero or not finite: a"):
        index.add(["a"], np.full((1, DIM), np.nan), more)
    with pytest.raises(UserError, match=r"the metadata columns are none, those of the index n\. Fix: give --metadata"):
        index.add(["a"], vectors[:1])
    with pytest.raises(UserError, match="field 'n': cannot be turned into int64"):
        index.add(["a"], vectors[:1], pa.table({"n": ["x"]}))
    assert index.search(vectors[:1], 60).rows.shape == (1, 60)
    with pytest.raises(UserError, match="must be one of exact, compact, large, not 'fast'"):
        VectorIndex.build(names(60), vectors, kind="fast")
    with pytest.raises(UserError, match="field 'num_candidates': must be at least 1, not 0"):
        VectorIndex.build(names(60), vectors, kind="large", num_candidates=0)
    with pytest.raises(UserError, match=r"vectors must be \[N, D\], not \[0, 24\]"):
        VectorIndex.build([], vectors[:0])
    with pytest.raises(UserError, match="field 'id': must not occur twice"):
        VectorIndex.build(names(60), vectors, metadata=pa.table({"id": names(60)}))


@pytest.mark.parametrize("kind", ["exact", "compact", "large"])
def test_one_video_is_enough(kind: str) -> None:
    index = VectorIndex.build(["only"], make(1), kind=kind)
    assert index.search(make(3), 5).lists() == [
        [("only", pytest.approx(score, abs=0.02))] for score in make(3) @ make(1)[0]
    ]


def test_compact_has_the_levels_of_the_quantizer() -> None:
    vectors = make()
    quantizer = fit_quantizer(vectors, 4)
    expected = quantizer.decode(quantizer.encode(vectors))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = VectorIndex.build(names(NUM), vectors, kind="compact").vectors_of(np.arange(NUM))
    assert (np.abs(got - expected).max(axis=1) < 1e-6).mean() > 0.99  # values half-way between two levels may differ


def test_few_and_equal_vectors_can_be_compact() -> None:
    vectors = np.tile(make(4), (5, 1))
    vectors[:, 3] = 0
    index = VectorIndex.build(names(20), vectors, kind="compact")
    assert sorted(row % 4 for row in index.search(vectors[1:2], 5).rows[0].tolist()) == [1] * 5


def test_compact_returns_all_that_are_asked_for_also_of_equal_codes() -> None:
    """Of 12 copies of this vector of 2 numbers faiss itself finds none."""
    vectors = np.tile(np.random.default_rng(1).normal(size=(1, 2)), (12, 1)).astype(np.float32)
    index = VectorIndex.build(names(12), vectors, kind="compact")
    assert set(index.search(vectors[:1], 12).rows[0].tolist()) == set(range(12))
    assert set(index.search(vectors[:1], 5, exclude=[[0, 1]]).rows[0].tolist()) <= set(range(2, 12))
    assert set(index.search(vectors[:1], 3, among=["v4", "v7"]).rows[0].tolist()) == {4, 7}


def test_saving_again_replaces_and_never_mixes(tmp_path: Path) -> None:
    vectors = make(60)
    folder = tmp_path / "index"
    index = VectorIndex.build(names(60), vectors, kind="compact", refine=True)
    index.save(folder)
    mapped = VectorIndex.load(folder, mmap=True)
    before = mapped.search(vectors[:5], 3)
    index.remove(names(30))
    index.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "codes-2.faiss",
        "items-2.arrow",
        "vector_index.json",
        "vectors-2.npy",
    ]
    assert len(VectorIndex.load(folder)) == 30
    assert mapped.search(vectors[:5], 3).rows.tolist() == before.rows.tolist()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an index and not an empty folder"):
        index.save(tmp_path / "other")
    # An unwritable part in the middle leaves what was there.
    (folder / "vectors-3.npy").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        index.save(folder)
    (folder / "vectors-3.npy").rmdir()
    assert len(VectorIndex.load(folder)) == 30


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(UserError, match="is not an index folder"):
        VectorIndex.load(folder)
    VectorIndex.build(names(60), make(60), kind="compact", refine=True).save(folder)
    good = {path: path.read_bytes() for path in folder.iterdir()}
    for name in ("codes-1.faiss", "items-1.arrow", "vectors-1.npy"):
        path = folder / name
        content = bytearray(good[path])
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(UserError, match=rf"{name}: is damaged: its checksum is another.*Fix: make it again"):
            VectorIndex.load(folder)
        path.write_bytes(good[path][:-7])
        for mmap in (True, False):
            with pytest.raises(UserError, match=rf"{name}: is damaged: [\d,]+ bytes, not \d+"):
                VectorIndex.load(folder, mmap=mmap)
        path.unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            VectorIndex.load(folder)
        path.write_bytes(good[path])
    description = json.loads((folder / "vector_index.json").read_text())
    for change, message in [
        ({"format_version": 1}, "is of format 1, this vidsim reads 2"),
        ({"kind": "odd"}, "field 'kind': must be one of"),
        ({"dim": "24"}, "field 'dim': is missing or of the wrong type"),
        ({"num_vectors": 61}, "holds 60 vectors of width 24, vector_index.json says 61"),
        ({"files": {}}, "field 'files'"),
        ({"files": {"codes": {"file": "../x", "size": 1}, "items": {}}}, "does not name its files"),
    ]:
        (folder / "vector_index.json").write_text(json.dumps(description | change))
        with pytest.raises(UserError, match=message):
            VectorIndex.load(folder)


def test_without_faiss_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['faiss'] = None\n"
        "import numpy as np\n"
        "from vidsim.common.errors import UserError\n"
        "from vidsim.retrieval.index import VectorIndex\n"
        "from vidsim.retrieval.exact import ExactIndex\n"
        "assert ExactIndex(['a', 'b'], np.eye(2)).search(np.eye(2), 1)[0].tolist() == [[0], [1]]\n"
        "try:\n    VectorIndex.build(['a'], np.ones((1, 2)))\n"
        "except UserError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.startswith("an index needs faiss, which cannot be imported")
    assert "Fix: pip install 'vidsim[retrieval]'" in run.stdout


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mmap", [False, True])
def test_an_emptied_index_finds_nothing_and_can_be_filled(
    settings: dict[str, object], mmap: bool, tmp_path: Path
) -> None:
    vectors = make(60)
    index = VectorIndex.build(names(60), vectors, **settings)  # type: ignore[arg-type]
    index.remove(names(60))
    index.save(tmp_path / "index")
    index = VectorIndex.load(tmp_path / "index", mmap=mmap)
    assert len(index) == 0
    assert index.search(vectors[:2], 3).lists() == [[], []]
    with pytest.raises(UserError, match="1 ids are not among the 0 of the index: v1"):
        index.rows_of(["v1"])
    if not mmap:
        index.add(names(60), vectors)
        assert (index.search(vectors, 1).rows[:, 0] == np.arange(60)).mean() > 0.9


def test_a_graph_forgets_what_was_removed_and_is_made_anew_in_time(tmp_path: Path) -> None:
    vectors = make()
    index = VectorIndex.build(names(NUM), vectors, kind="large")
    index.remove(names(400))
    assert index._backend.ntotal == NUM  # still way-marks
    index.save(tmp_path / "index")
    for again in (index, VectorIndex.load(tmp_path / "index"), VectorIndex.load(tmp_path / "index", mmap=True)):
        found = again.search(vectors, 5)  # also of those that are gone
        assert (found.rows >= 0).all()
        assert {int(name[1:]) for one in found.lists() for name, _ in one} <= set(range(400, NUM))
        assert recall(found, best(vectors[400:], vectors, 5)) > 0.95
    stay = names(NUM)[500:]
    before = index.vectors_by_id(stay)
    index.remove([f"v{number}" for number in range(400, 500)])
    assert index._backend.ntotal == len(index) == 400
    np.testing.assert_array_equal(index.vectors_by_id(stay), before)
    assert recall(index.search(vectors[500:], 5), best(vectors[500:], vectors[500:], 5)) > 0.95
    index.add(names(100, "w"), vectors[:100])
    assert (index.search(vectors[:100], 1).rows[:, 0] == np.arange(400, 500)).mean() > 0.99


def test_a_walk_that_finds_too_few_is_made_good() -> None:
    # Twenty clumps: a walk that begins in one that the filter leaves out meets few of the others.
    centres = unit(np.random.default_rng(1).normal(size=(20, DIM)))
    noise = np.random.default_rng(2).normal(size=(2000, DIM))
    vectors = unit(centres[np.arange(2000) % 20] + 0.01 * noise)
    clump = pa.table({"clump": (np.arange(2000) % 20).tolist()})
    index = VectorIndex.build(names(2000), vectors, kind="large", num_candidates=5, metadata=clump)
    found = index.search(centres, 90, where=pc.field("clump") < 10)
    assert (found.rows >= 0).all()
    assert (found.rows % 20 < 10).all()
    for number in range(20):  # few are allowed: all of them are looked at
        found = index.search(centres[(number + 1) % 20][None], 100, where=pc.field("clump") == number)
        assert sorted(found.rows[0].tolist()) == list(range(number, 2000, 20))
