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

# What the system says of a place where no file can be put; EEXIST: a file stands where a folder must be.
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place, synced to disk, if the block succeeds.

    Raises:
        UserError: The disk is full or the folder cannot be written; `path` keeps its old content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if (known := _explained(error, path)) is not None:
            raise known from error
        raise
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, path)  # onto an empty folder is allowed
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise UserError("is there already", file=path, fix="choose another folder, or remove it") from error
        if (known := _explained(error, path)) is not None:
            raise known from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _explained(error: OSError, path: Path) -> UserError | None:
    """The error for what a user can do something about."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    if error.errno == errno.EFBIG:
        return too_large(path)
    if error.errno in _UNWRITABLE:
        return UserError(f"cannot be written ({error.strerror})", file=path, fix="choose another --out")
    return None


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


def require_new(path: str | Path, *, overwrite: bool) -> None:
    """Refuse to replace what is there already, which may be somebody's input.

    Raises:
        UserError: There is a file or a folder with something in it, and `overwrite` is not set.
    """
    path = Path(path)
    is_there = any(path.iterdir()) if path.is_dir() else path.exists()
    if is_there and not overwrite:
        raise UserError("is there already", file=path, field="--out", fix="choose another, or give --overwrite")
