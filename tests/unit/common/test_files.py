from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_folder, atomic_path, read_json, require_free_space, sha256_file, write_json


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 4,096 bytes; not a fixture, or pytest's own report, sent to a file, could not grow."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(f"new {1 // 0}")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_outgrows_its_limit_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    expected = pytest.raises(UserError, match=r"a\.txt: grew beyond the limit .*ulimit")
    with small_files(), expected, atomic_path(path) as temporary:
        temporary.write_text("x" * 5000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/a.txt", "file/deeper/a.txt", "folder", "long" * 100])
def test_a_place_where_no_file_can_be_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(UserError, match=r"cannot be written \(.*choose another --out"),
        atomic_path(tmp_path / name) as t,
    ):
        t.write_text("x")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "graph"
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as temporary:
        (temporary / "a.txt").write_text(f"new {1 // 0}")
    assert list(path.parent.iterdir()) == []
    path.mkdir()  # an empty folder is no result
    with atomic_folder(path) as temporary:
        (temporary / "a.txt").write_text("whole")
        assert not any(path.iterdir())
    assert [each.relative_to(path.parent).as_posix() for each in path.parent.rglob("*")] == ["graph", "graph/a.txt"]


def test_a_folder_does_not_replace_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    path.mkdir()
    (path / "a.txt").write_text("old")
    with pytest.raises(UserError, match=r"graph: is there already.*Fix: choose another"), atomic_folder(path) as new:
        (new / "a.txt").write_text("new")
    assert (path / "a.txt").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["graph"]


def test_json_is_strict_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, None]})
    assert read_json(path) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == {"ä": [1, None]}
    for text, message in (
        ('{"a": NaN}', "holds NaN"),
        ('{"a": 1, "a": 2}', "field 'a': the key stands twice"),
        ("{", "is not valid JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_json(path)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "nowhere.json")


def test_space_is_asked_of_the_disk_that_will_hold_the_folder(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(UserError, match=r"not/yet: needs 1,000,000,000,000,000,000 bytes, [\d,]+ are free"):
        require_free_space(tmp_path / "not" / "yet", 10**18)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
