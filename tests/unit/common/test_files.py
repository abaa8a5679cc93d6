from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.common.files import (
    atomic_folder,
    atomic_path,
    read_json,
    require_free_space,
    require_new,
    require_readable,
    sha256_file,
    write_json,
)


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


@pytest.mark.parametrize("whole", [atomic_path, atomic_folder])
@pytest.mark.parametrize("names_the_file", [True, False])
def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(
    tmp_path: Path, whole: Callable[[Path], contextlib.AbstractContextManager[Path]], names_the_file: bool
) -> None:
    text = "Permission denied"
    error = OSError(errno.EACCES, text, "in.csv") if names_the_file else OSError(errno.EACCES, f"in.csv: {text}")
    with pytest.raises(PermissionError, match=r"in\.csv"), whole(tmp_path / "out"):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names_the_file", [True, False])
def test_what_cannot_be_written_inside_is_blamed_on_the_output(tmp_path: Path, names_the_file: bool) -> None:
    def refuse(file: str) -> None:
        # Arrow names the file in the message alone.
        raise OSError(errno.EACCES, "no", file) if names_the_file else OSError(errno.EACCES, f"Failed to open '{file}'")

    with pytest.raises(UserError, match=r"out: cannot be written"), atomic_folder(tmp_path / "out") as folder:
        refuse(str(folder / "a.parquet"))


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(), tmp_path):
        with pytest.raises(UserError, match=r"is the folder that you are in\. Fix: name a new"), atomic_folder(path):
            pass
    with pytest.raises(UserError, match="cannot be written"), atomic_path(".") as temporary:
        temporary.write_text("x")
    assert tmp_path.samefile(".")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_refused_with_a_way_out_that_exists(tmp_path: Path) -> None:
    require_new(tmp_path)  # an empty folder is no result
    require_new(tmp_path / "none", overwrite=False)
    (tmp_path / "a.txt").write_text("x")
    require_new(tmp_path / "a.txt", overwrite=True)
    for path, what in ((tmp_path, "is there already and not empty"), (tmp_path / "a.txt", "is there already")):
        with pytest.raises(UserError, match=r"--out: is there already\. Fix: .*give --overwrite"):
            require_new(path, overwrite=False)
        with pytest.raises(UserError, match=rf"{what}\. Fix: choose another --out, or remove it"):
            require_new(path)


def test_an_input_that_cannot_be_opened_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    require_readable(tmp_path / "a.txt")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("none", "No such file"), ("loop", "Too many levels"), (".", "Is a directory")):
        with pytest.raises(UserError, match=rf"cannot be read \({reason}.*Fix: check its permissions"):
            require_readable(tmp_path / name)
