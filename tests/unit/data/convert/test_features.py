from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.convert.features import open_features, to_float16, write_stack

A = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float16)
B = np.array([[7, 8, 9]], dtype=np.float16)


def _save_index(path: Path, offsets: dict[str, Any], **more: Any) -> None:
    path.write_text(json.dumps({"dim": 3, "extractor": "net", "offsets": offsets} | more))


def test_reads_a_folder_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A.astype(np.float64))
    np.save(tmp_path / "b.npy", B[0].astype(np.float32))  # one vector = one frame
    np.save(tmp_path / "c.npy", np.zeros((0, 3), np.float16))
    source = open_features(tmp_path, extractor="net")
    assert (source.dim, source.extractor, len(source)) == (3, "net", 3)
    for id, expected in (("a", A), ("b", B), ("c", A[:0])):
        found = source.read(id)
        assert found is not None
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected)
    assert source.read("d") is None


def test_reads_an_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "f.npz", a=A, b=B)
    source = open_features(tmp_path / "f.npz")
    assert (source.dim, source.extractor, len(source)) == (3, None, 2)
    np.testing.assert_array_equal(source.read("b"), B)
    assert source.read("c") is None


@pytest.mark.parametrize("index", ["json", "tsv", "named"])
def test_reads_a_stack(index: str, tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    np.save(path, np.concatenate([A, B]))
    named = None
    if index == "json":
        _save_index(tmp_path / "f.json", {"a": [0, 2], "b": [2, 1], "c": [3, 0]})
    else:
        named = tmp_path / "places.tsv" if index == "named" else None
        (named or tmp_path / "f.tsv").write_text("id\tstart\tcount\na\t0\t2\nb\t2\t1\nc\t3\t0\n")
    source = open_features(path, index=named)
    assert (source.dim, len(source)) == (3, 3)
    assert source.extractor == ("net" if index == "json" else None)
    np.testing.assert_array_equal(source.read("a"), A)
    np.testing.assert_array_equal(source.read("b"), B)
    np.testing.assert_array_equal(source.read("c"), A[:0])
    assert source.read("d") is None


def test_writes_a_stack_that_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    assert write_stack(path, iter([("a", A), ("none", A[:0]), ("b", B)]), dim=3, extractor="net") == 3
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), np.concatenate([A, B]))
    source = open_features(path)
    assert (source.dim, source.extractor, len(source)) == (3, "net", 3)
    np.testing.assert_array_equal(source.read("b"), B)
    np.testing.assert_array_equal(source.read("none"), A[:0])


def test_an_empty_stack_is_legal(tmp_path: Path) -> None:
    write_stack(tmp_path / "f.npy", [], dim=3, extractor=None)
    assert np.load(tmp_path / "f.npy").shape == (0, 3)


@pytest.mark.parametrize(
    ("features", "message"),
    [([("a", A), ("a", B)], "record a: the id comes twice"), ([("a", A[:, :2])], r"must be float16 \[n, 3\]")],
)
def test_a_stack_that_fails_is_not_there(features: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_stack(tmp_path / "f.npy", features, dim=3, extractor=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((1, 3), np.nan, np.float32), "not finite or beyond 65504"),
        (np.full((1, 3), 1e5, np.float32), "not finite or beyond 65504"),
        (np.full((1, 3), -np.inf, np.float16), "not finite or beyond 65504"),
        (np.zeros((1, 4), np.float16), "vectors of width 4, others have 3"),
        (np.zeros((1, 3), np.int64), r"must be floating-point \[n, D\], is int64 \[1, 3\]"),
        (np.zeros((1, 1, 3), np.float16), r"is float16 \[1, 1, 3\]"),
        (np.zeros((2, 0), np.float16), r"is float16 \[2, 0\]"),
    ],
)
def test_bad_vectors_are_named(array: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=rf"x\.npy, record v: .*{message}"):
        to_float16(array, 3, Path("x.npy"), "v")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"offsets": {"a": [0, 4]}}, "record a: rows 0 to 4 of an array that has 3"),
        ({"offsets": {"a": [-1, 1]}}, "record a: rows -1 to 0"),
        ({"offsets": {"a": [0]}}, r"record a, field 'offsets': must be \[start, count\]"),
        ({"offsets": {"a": [0, True]}}, r"must be \[start, count\]"),
        ({"offsets": {}, "dim": 4}, "field 'dim': is 4, but the array's vectors have 3"),
        ({"offsets": {}, "extractor": 5}, "field 'extractor': must be text or null"),
        ({"offsets": []}, "must be an object with offsets"),
        ([], "must be an object with offsets"),
    ],
)
def test_a_bad_index_is_named(index: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.concatenate([A, B]))
    (tmp_path / "f.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"f\.json, .*{message}|f\.json: {message}"):
        open_features(tmp_path / "f.npy")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\t0\n", "line 1: must be id, start, count"),
        ("a\t0\t1\na\t1\t1\n", "line 2: the id 'a' stands twice"),
        ("a\t0\t-1\n", "line 1: must be id, start, count"),
        ("a\t3\t1\n", "record a: rows 3 to 4 of an array that has 3"),
    ],
)
def test_bad_index_lines_are_named(lines: str, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.concatenate([A, B]))
    (tmp_path / "f.tsv").write_text(lines)
    with pytest.raises(UserError, match=rf"f\.tsv, {message}"):
        open_features(tmp_path / "f.npy")


def test_a_stack_without_index_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", A)
    with pytest.raises(UserError, match=r"needs an index.*Fix: write f\.json, or --feature_index"):
        open_features(tmp_path / "f.npy")


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (_executed.append, (True,))


_executed: list[bool] = []


@pytest.mark.parametrize("kind", ["folder", "stack", "archive"])
def test_pickles_are_refused_and_never_run(kind: str, tmp_path: Path) -> None:
    array = np.array([_Payload()], dtype=object)
    if kind == "archive":
        np.savez(tmp_path / "f.npz", a=array)
        path = tmp_path / "f.npz"
    else:
        np.save(tmp_path / "f.npy", array, allow_pickle=True)
        _save_index(tmp_path / "f.json", {})
        path = tmp_path if kind == "folder" else tmp_path / "f.npy"
    with pytest.raises(UserError, match=r"Object arrays cannot be loaded|Python objects in dtype"):
        open_features(path)
    (tmp_path / "f.npy").write_bytes(pickle.dumps(_Payload()))
    with pytest.raises(UserError):
        open_features(tmp_path / "f.npy", index=tmp_path / "none.json")
    assert not _executed


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": (2**40, 3)})
    (tmp_path / "a.npy").write_bytes(buffer.getvalue() + bytes(12))
    with pytest.raises(UserError, match=r"a\.npy: is not a \.npy file of numbers"):
        open_features(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_features(tmp_path / "none.npy")
    with pytest.raises(UserError, match=r"holds no \.npy files"):
        open_features(tmp_path)
    (tmp_path / "f.npz").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"f\.npz: is not an \.npz file"):
        open_features(tmp_path / "f.npz")
    np.savez(tmp_path / "e.npz")
    with pytest.raises(UserError, match="holds no arrays"):
        open_features(tmp_path / "e.npz")
    np.save(tmp_path / "f.npy", A)
    (tmp_path / "f.npy").write_bytes((tmp_path / "f.npy").read_bytes()[:-2])
    with pytest.raises(UserError, match=r"f\.npy: is not a \.npy file of numbers"):
        open_features(tmp_path)


def test_an_id_that_leads_outside_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "out.npy", A)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", A)
    with pytest.raises(UserError, match="cannot be a file name"):
        open_features(tmp_path / "in").read("../out")


def test_index_lines_are_read_as_every_other_text(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.concatenate([A, B]))
    text = "\ufeffid\tstart\tcount\r\na\u2028b\t0\t2\r\nc\t2\t1\r\n"
    (tmp_path / "f.tsv").write_bytes(text.encode())
    source = open_features(tmp_path / "f.npy")
    np.testing.assert_array_equal(source.read("a\u2028b"), A)
    np.testing.assert_array_equal(source.read("c"), B)


def test_an_old_index_does_not_stay_beside_a_new_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack(tmp_path / "f.npy", [("a", A), ("b", B)], dim=3, extractor=None)

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidsim.data.convert.features.write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        write_stack(tmp_path / "f.npy", [("b", B), ("a", A)], dim=3, extractor=None)
    with pytest.raises(UserError, match="needs an index"):
        open_features(tmp_path / "f.npy")
