from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidsim.common.errors import UserError
from vidsim.data.embeddings import (
    Embeddings,
    EmbeddingWriter,
    align,
    positions,
    read_embeddings,
    repeated,
    write_embeddings,
)

META = {"model": "m1", "data": "d1", "normalized": True}


def make(num_rows: int, dim: int = 3, seed: int = 0) -> tuple[list[str], np.ndarray]:
    vectors = np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)
    return [f"v{i}" for i in range(num_rows)], vectors


@pytest.mark.parametrize("name", ["emb/a", "a.parquet"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    ids, vectors = make(7)
    write_embeddings(tmp_path / name, ids, vectors, META)
    loaded = read_embeddings(tmp_path / name)
    assert loaded.ids == ids
    assert loaded.vectors.dtype == np.float32
    np.testing.assert_array_equal(loaded.vectors, vectors)
    assert loaded.metadata == META
    assert (len(loaded), loaded.dim) == (7, 3)


def test_shard_is_plain_parquet_with_the_documented_columns(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a", *make(4), META)
    table = pq.read_table(tmp_path / "a" / "part-00000.parquet")
    assert table.schema.field("id").type == pa.string()
    kind = table.schema.field("embedding").type
    assert pa.types.is_fixed_size_list(kind)
    assert (kind.list_size, kind.value_type) == (3, pa.float32())
    assert json.loads(table.schema.metadata[b"vidsim"]) == META


def test_writer_shards_in_input_order(tmp_path: Path) -> None:
    ids, vectors = make(10)
    with EmbeddingWriter(tmp_path, 3, META, shard_size=4) as writer:
        for start in range(0, 10, 3):
            writer.write(ids[start : start + 3], vectors[start : start + 3])
    index = json.loads((tmp_path / "embeddings.json").read_text())
    assert [shard["num_rows"] for shard in index["shards"]] == [4, 4, 2]
    assert (index["num_rows"], index["dim"], index["complete"]) == (10, 3, True)
    loaded = read_embeddings(tmp_path)
    assert loaded.ids == ids
    np.testing.assert_array_equal(loaded.vectors, vectors)


def write_then_stop(folder: Path, ids: list[str], vectors: np.ndarray, shard_size: int) -> None:
    with EmbeddingWriter(folder, vectors.shape[1], META, shard_size=shard_size) as writer:
        writer.write(ids, vectors)
        assert writer.num_done == len(ids)
        raise KeyboardInterrupt


def test_resume_after_an_interruption(tmp_path: Path) -> None:
    ids, vectors = make(10)
    with pytest.raises(KeyboardInterrupt):
        write_then_stop(tmp_path, ids[:9], vectors[:9], shard_size=4)
    with pytest.raises(UserError, match="not complete: 2 shards"):
        read_embeddings(tmp_path)
    (tmp_path / ".part-00002.parquet.99.tmp").write_bytes(b"left over")
    with EmbeddingWriter(tmp_path, 3, META, shard_size=4, num_rows=10) as writer:
        assert writer.num_done == 8
        writer.write(ids[8:], vectors[8:])
    loaded = read_embeddings(tmp_path)
    assert loaded.ids == ids
    np.testing.assert_array_equal(loaded.vectors, vectors)
    assert not list(tmp_path.glob(".*"))
    again = EmbeddingWriter(tmp_path, 3, META)
    assert again.is_complete
    assert again.num_done == 10
    with pytest.raises(UserError, match="is complete with 10 rows, not 11"):
        EmbeddingWriter(tmp_path, 3, META, num_rows=11)
    with pytest.raises(UserError, match="complete already"):
        again.write(["x"], vectors[:1])


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    ids, vectors = make(4)
    with pytest.raises(KeyboardInterrupt):
        write_then_stop(tmp_path, ids, vectors, shard_size=2)
    with pytest.raises(UserError, match=r"another run .*: model\)"):
        EmbeddingWriter(tmp_path, 3, {**META, "model": "m2"})
    with pytest.raises(UserError, match=r"another run .*: dim\)"):
        EmbeddingWriter(tmp_path, 5, META)
    with EmbeddingWriter(tmp_path, 3, {**META, "model": "m2"}, overwrite=True) as writer:
        assert writer.num_done == 0
        writer.write(ids[:1], vectors[:1])
    assert read_embeddings(tmp_path).ids == ids[:1]


def test_resume_names_a_missing_shard(tmp_path: Path) -> None:
    ids, vectors = make(6)
    with EmbeddingWriter(tmp_path, 3, META, shard_size=2) as writer:
        writer.write(ids, vectors)
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet is missing"):
        EmbeddingWriter(tmp_path, 3, META)
    with pytest.raises(UserError, match=r"part-00001\.parquet"):
        read_embeddings(tmp_path)


def test_writer_refuses_a_wrong_number_of_rows(tmp_path: Path) -> None:
    ids, vectors = make(3)
    with (
        pytest.raises(UserError, match="3 of 4 rows"),
        EmbeddingWriter(tmp_path, 3, META, shard_size=2, num_rows=4) as writer,
    ):
        writer.write(ids, vectors)
    assert not (tmp_path / "embeddings.json").exists()


def test_repeated_ids_are_named_across_shards(tmp_path: Path) -> None:
    _, vectors = make(6)
    with (
        pytest.raises(UserError, match="2 ids occur more than once: b, a"),
        EmbeddingWriter(tmp_path, 3, META, shard_size=2) as writer,
    ):
        writer.write(["b", "a", "c", "b", "a", "d"], vectors)
    with pytest.raises(UserError, match="1 ids occur more than once: a"):
        write_embeddings(tmp_path / "x.parquet", ["a", "b", "a"], vectors[:3])
    assert repeated(["a", "b"]) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_not_finite_is_refused_and_named(tmp_path: Path, value: float) -> None:
    ids, vectors = make(3)
    wide = vectors.astype(np.float64)
    wide[1, 2] = value
    with pytest.raises(UserError, match=r"field 'embedding': 1 embeddings hold NaN or infinity: v1"):
        write_embeddings(tmp_path / "x.parquet", ids, wide)
    assert not list(tmp_path.iterdir())


def test_large_finite_values_are_kept(tmp_path: Path) -> None:
    vectors = np.full((2, 4), 3e38, np.float32)  # their float32 sum overflows, they do not
    write_embeddings(tmp_path / "x.parquet", ["a", "b"], vectors)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x.parquet").vectors, vectors)


def test_wrong_shapes_and_ids(tmp_path: Path) -> None:
    ids, vectors = make(3)
    with pytest.raises(UserError, match=r"\[2, 3\] was expected, this one is \[3, 3\]"):
        write_embeddings(tmp_path / "x.parquet", ids[:2], vectors)
    with pytest.raises(UserError, match="is not a text id"):
        write_embeddings(tmp_path / "x.parquet", ["a", 7, "c"], vectors)  # type: ignore[list-item]
    with pytest.raises(UserError, match="is not a text id"):
        write_embeddings(tmp_path / "x.parquet", ["a", "", "c"], vectors)
    with EmbeddingWriter(tmp_path / "a", 4, META) as writer, pytest.raises(UserError, match="was expected"):
        writer.write(ids, vectors)


def other_program(path: Path, ids: pa.Array, vectors: pa.Array) -> Path:
    pq.write_table(pa.table({"id": ids, "embedding": vectors}), path)
    return path


def test_reads_lists_of_other_programs(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float64()))
    loaded = read_embeddings(other_program(tmp_path / "x.parquet", pa.array(["a", "b"]), vectors))
    assert loaded.vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert loaded.metadata == {}


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (pa.array(["a", "b"]), pa.array([[1.0, 2.0], [3.0]]), r"several widths: \[1, 2\]"),
        (pa.array(["a", "b"]), pa.array([[1.0, 2.0], None]), r"field 'embedding': 1 values are missing"),
        (pa.array(["a", "b"]), pa.array([[1.0, 2.0], [None, 1.0]]), "missing value"),
        (pa.array(["a", "b"]), pa.array([[1.0, float("nan")], [1.0, 1.0]]), "NaN or infinity: a"),
        (pa.array(["a", "b"]), pa.array([[1, 2], [3, 4]]), "not a list of floats"),
        (pa.array(["a", "b"]), pa.array([[], []], pa.list_(pa.float32())), r"several widths: \[0\]"),
        (pa.array(["a", None]), pa.array([[1.0], [2.0]]), r"field 'id': 1 values are missing"),
        (pa.array([1, 2]), pa.array([[1.0], [2.0]]), "not string"),
        (pa.array(["a", "a"]), pa.array([[1.0], [2.0]]), "more than once: a"),
        (pa.array([], pa.string()), pa.array([], pa.list_(pa.float32())), "holds no embeddings"),
    ],
)
def test_planted_faults_are_named(tmp_path: Path, ids: pa.Array, vectors: pa.Array, message: str) -> None:
    path = other_program(tmp_path / "x.parquet", ids, vectors)
    with pytest.raises(UserError, match=message) as caught:
        read_embeddings(path)
    assert str(path) in str(caught.value)


def test_damaged_bytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_embeddings(path, *make(1000, 16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_embeddings(path)
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_embeddings(path)


def test_missing_folder_and_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such embeddings"):
        read_embeddings(tmp_path / "nothing")
    with pytest.raises(UserError, match="is no embeddings folder"):
        read_embeddings(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shards", [{"file": "../../secret.parquet", "num_rows": 3}], "shard 0 must be part-00000"),
        ("shards", [{"file": "part-00000.parquet", "num_rows": 2}], "another number of rows"),
        ("complete", False, "not a complete index"),
        ("format_version", 2, "not a complete index"),
        ("num_rows", None, "must be of type int"),
    ],
)
def test_index_is_checked(tmp_path: Path, key: str, value: object, message: str) -> None:
    write_embeddings(tmp_path, *make(3), META)
    index = json.loads((tmp_path / "embeddings.json").read_text())
    (tmp_path / "embeddings.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(UserError, match=message):
        read_embeddings(tmp_path)


def test_rows_of() -> None:
    emb = Embeddings(["c", "a", "b"], np.eye(3, dtype=np.float32), name="emb/x")
    assert emb.rows_of(["b", "c", "b"]).tolist() == [2, 0, 2]
    wanted = ["a", *(f"q{i}" for i in range(7)), "q0"]
    with pytest.raises(
        UserError, match=r"emb/x: has no embedding for 7 of the 8 ids .*: q0, q1, q2, q3, q4 and 2 more"
    ):
        emb.rows_of(wanted)
    assert positions(["z", "a"], ["a"]).tolist() == [-1, 0]


def test_align_orders_by_the_first_member() -> None:
    first = Embeddings(["a", "b", "c"], np.eye(3, dtype=np.float32), name="emb/a")
    second = Embeddings(["c", "a", "b"], np.array([[3], [1], [2]], np.float32), name="emb/b")
    ids, (x, y) = align([first, second])
    assert ids == ["a", "b", "c"]
    assert x is first.vectors
    assert y.tolist() == [[1], [2], [3]]


def test_align_names_missing_and_extra_ids() -> None:
    first = Embeddings(["a", "b", "c"], np.eye(3, dtype=np.float32), name="emb/a")
    second = Embeddings(["a", "x", "y"], np.eye(3, dtype=np.float32), name="emb/b")
    with pytest.raises(UserError) as caught:
        align([first, second])
    assert "emb/b lacks 2 of them (b, c)" in str(caught.value)
    assert "emb/b has 2 others (x, y)" in str(caught.value)


def test_files_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    names = ["part-00000-abc.c000.snappy.parquet", "part-1.parquet", "part-00000.parquet.bak"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match="is no embeddings folder"):
        read_embeddings(tmp_path)
    for _ in range(2):
        write_embeddings(tmp_path, *make(4), META)
    assert read_embeddings(tmp_path).ids == make(4)[0]
    assert EmbeddingWriter(tmp_path, 3, META).is_complete
    assert [(tmp_path / name).read_bytes() for name in names] == [b"mine"] * 3
