"""The one class for errors that the user can mend."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Files that people open in an editor, which counts lines from 1 as their readers do.
_TEXT_SUFFIXES = frozenset({".csv", ".jsonl", ".ndjson", ".tab", ".tsv", ".txt", ".yaml", ".yml"})


class UserError(Exception):
    """Bad input, described so that the user can mend it: file, record, field, what is wrong, what to do.

    Args:
        message: What is wrong, with the offending value.
        file: The file or folder at fault.
        record: Row, line or record number (1-based for text lines, 0-based for binary records) or an id.
        field: Column, feature, configuration key, or option of the command line with its dashes.
        fix: What the user can do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        record: int | str | None = None,
        field: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Keep the parts, so that callers can quarantine a record by its number."""
        super().__init__(message)
        self.message = message
        self.file = str(file) if file is not None else None
        self.record = record
        self.field = field
        self.fix = fix

    def __str__(self) -> str:
        """One line: `file, record 7, field 'title': message. Fix: ...`."""
        where = [short_path(self.file)] if self.file else []
        if self.record is not None:
            where.append(record_name(self.record, self.file))
        if self.field is not None:
            where.append(self.field if self.field.startswith("-") else f"field '{self.field}'")
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        if self.fix:
            text = f"{text.rstrip('.')}. Fix: {self.fix}"
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way back from a worker process with every part."""
        return _rebuild, (self.message, self.file, self.record, self.field, self.fix)


def record_name(record: int | str, file: str | Path | None) -> str:
    """How messages call a record: `line 3` of a text file, otherwise `record 3`."""
    is_line = isinstance(record, int) and file is not None and Path(file).suffix.lower() in _TEXT_SUFFIXES
    return f"{'line' if is_line else 'record'} {record}"


def short_path(file: str | Path) -> str:
    """A path below the working folder as seen from there."""
    with contextlib.suppress(OSError):  # the working folder may be gone
        return str(file).removeprefix(os.getcwd() + os.sep)
    return str(file)


def _rebuild(message: str, file: str | None, record: int | str | None, field: str | None, fix: str | None) -> UserError:
    return UserError(message, file=file, record=record, field=field, fix=fix)
