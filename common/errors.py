"""The one class for errors that the user can mend."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Bad input, described so that the user can mend it: file, record, field, what is wrong, what to do.

    Args:
        message: What is wrong, with the offending value.
        file: The file or folder at fault.
        record: Row, line or record number (1-based for text lines, 0-based for binary records) or an id.
        field: Column, feature or configuration key.
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
        where = [self.file] if self.file else []
        if self.record is not None:
            where.append(f"record {self.record}")
        if self.field is not None:
            where.append(f"field '{self.field}'")
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        if self.fix:
            text = f"{text.rstrip('.')}. Fix: {self.fix}"
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way back from a worker process with every part."""
        return _rebuild, (self.message, self.file, self.record, self.field, self.fix)


def _rebuild(message: str, file: str | None, record: int | str | None, field: str | None, fix: str | None) -> UserError:
    return UserError(message, file=file, record=record, field=field, fix=fix)
