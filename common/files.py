"""Files and folders that are written whole or not at all, strict JSON, and checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from vidsim.common.errors import UserError

# What the system says of a place where no file can be put; EEXIST: a file stands where a folder must be,
# and EBUSY: it is the working folder.
_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place, synced to disk, if the block succeeds.

    Raises:
        UserError: The disk is full or the folder cannot be written; `path` keeps its old content.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _explained(path, within=temporary):
            yield temporary
        with _explained(path):
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; move it into place if the block succeeds, otherwise remove it.

    Raises:
        UserError: There is something at `path` already, the disk is full or the place cannot be written.
    """
    path = Path(path)
    if path.is_dir() and path.samefile("."):  # a shell would be left in the folder that is replaced
        raise UserError("is the folder that you are in", file=path, fix="name a new folder")
    temporary = _beside(path)
    try:
        with _explained(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        with _explained(path, within=temporary):
            yield temporary
        with _explained(path):
            os.rename(temporary, path)  # onto an empty folder is allowed
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Where `path` is written before it is moved into place: a name in the same folder, and of this process."""
    path = path.absolute()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def _explained(path: Path, within: Path | None = None) -> Iterator[None]:
    """Say of `path` what a user can do something about.

    Args:
        path: What is being written.
        within: Where the block writes. An error that does not name it is about something else, such as an input.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        if error.errno == errno.EFBIG:
            raise too_large(path) from error
        if within is None and error.errno == errno.ENOTEMPTY:
            raise UserError("is there already", file=path, fix="choose another folder, or remove it") from error
        # Arrow names the file in the message alone.
        is_ours = within is None or str(within) in f"{error.filename} {error}"
        if is_ours and error.errno in _UNWRITABLE:
            raise UserError(f"cannot be written ({error.strerror})", file=path, fix="choose another --out") from error
        raise


def disk_full(path: str | Path) -> UserError:
    """The error for a full disk, with the space that is left."""
    folder = Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return UserError(
        f"no space left on the disk while writing ({free:,} bytes free)", file=path, fix="free some space and run again"
    )


def too_large(path: str | Path) -> UserError:
    """The error for a file that outgrows the limit on the size of files."""
    return UserError("grew beyond the limit on the size of a file", file=path, fix="raise the limit (ulimit -f)")


def require_free_space(folder: str | Path, num_bytes: int) -> None:
    """Stop before writing `num_bytes` into a folder whose disk has less.

    Raises:
        UserError: Too little space; names the folder, what is needed and what is free.
    """
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise UserError(
            f"needs {num_bytes:,} bytes, {free:,} are free", file=folder, fix="free some space or choose another folder"
        )


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content, as hex; reads in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON (no NaN), whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read strict JSON.

    Raises:
        UserError: The file is missing, is not JSON, holds NaN or Infinity, or repeats a key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", file=path) from error

    def refuse_constant(token: str) -> NoReturn:
        raise UserError(f"holds {token}, which is not JSON", file=path)

    def refuse_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in items:
            if key in result:
                raise UserError("the key stands twice", file=path, field=key)
            result[key] = value
        return result

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"is not valid JSON ({error})", file=path) from error


def require_new(path: str | Path, *, overwrite: bool | None = None) -> None:
    """Refuse to replace what is there already, which may be somebody's input.

    Args:
        path: Where something is to be written.
        overwrite: Whether `--overwrite` was given; None where there is no such option.

    Raises:
        UserError: There is a file or a folder with something in it, and `overwrite` is not set.
    """
    path = Path(path)
    is_there = any(path.iterdir()) if path.is_dir() else path.exists()
    if not is_there or overwrite:
        return
    if overwrite is None:
        what = "is there already and not empty" if path.is_dir() else "is there already"
        raise UserError(what, file=path, fix="choose another --out, or remove it")
    raise UserError("is there already", file=path, field="--out", fix="choose another, or give --overwrite")


def require_readable(path: str | Path) -> None:
    """Refuse an input that cannot be opened, before anything is made of it.

    Raises:
        UserError: There is no such file, or it may not be read.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path, fix="check its permissions") from None
