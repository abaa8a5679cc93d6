"""Which columns of a table become which fields of a video row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vidsim.common.errors import UserError
from vidsim.data import schema


class CellError(Exception):
    """What is wrong with a cell, before file and record are known."""

    def __init__(self, column: str, message: str, fix: str | None = None) -> None:
        """Keep the parts."""
        super().__init__(message)
        self.column, self.message, self.fix = column, message, fix

    def at(self, file: object, record: int) -> UserError:
        """The same as an error that names file and record."""
        return UserError(self.message, file=str(file), record=record, field=self.column, fix=self.fix)


@dataclass
class ColumnMap:
    """Turns table rows into video rows without features, and remembers which columns it met.

    Attributes:
        id: Column of the video's id, text or a whole number.
        title: Column of the title.
        asr: Columns of further text, joined in this order.
        tags: Columns of tags: lists, or text with tags between separators.
        category: Column of the category, a whole number.
        feature_id: Column of the id that the features go by.
        optional: Columns that the user did not name: their absence is no mistake.
        id_prefix: Put before every id.
        tag_separator: Stands between tags in text.
        num_repeated_tags: Tags that a row named again; each is kept once.
    """

    id: str
    title: str
    asr: tuple[str, ...]
    tags: tuple[str, ...]
    category: str
    feature_id: str
    optional: frozenset[str] = frozenset()
    id_prefix: str = ""
    tag_separator: str = ","
    num_repeated_tags: int = 0
    _seen: set[str] = field(default_factory=set)
    _others: dict[str, None] = field(default_factory=dict)

    def names(self) -> set[str]:
        """All columns that are read."""
        return {self.id, self.title, *self.asr, *self.tags, self.category, self.feature_id}

    @property
    def has_tags(self) -> bool:
        """Whether any row had a column of tags, even an empty one."""
        return any(name in self._seen for name in self.tags)

    def convert(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """A video row without streams, and the id its features go by.

        Raises:
            CellError: A cell of the wrong type.
        """
        self._seen.update(self.names() & row.keys())
        if len(self._others) < 100:
            self._others.update(dict.fromkeys(row))
        own_id = _id_text(self.id, row.get(self.id))
        feature_id = own_id if self.feature_id == self.id else _id_text(self.feature_id, row.get(self.feature_id))
        video = {
            schema.ID: self.id_prefix + own_id,
            schema.TITLE: self._text([self.title], row),
            schema.ASR: self._text(self.asr, row),
            schema.TAGS: self._tags(row),
            schema.CATEGORY: _category(self.category, row.get(self.category)),
        }
        return video, feature_id

    def check_met(self, file: object) -> None:
        """Refuse a column that the user named and that no row had, at the end of the table.

        Raises:
            UserError: Names the column and those that are there.
        """
        for name in sorted(self.names() - self.optional - self._seen):
            known = ", ".join(list(self._others)[:20]) or "none"
            raise UserError("no row has this column", file=str(file), field=name, fix=f"name one of: {known}")

    def unread(self) -> str | None:
        """What to tell the user of a table without titles that has columns which nothing was taken from."""
        parts = {"title": (self.title,), "asr": self.asr, "tags": self.tags}
        missing = [name for name, columns in parts.items() if not self._seen.intersection(columns)]
        others = [name for name in self._others if name not in self._seen]
        if "title" not in missing or not others:
            return None
        options = ", ".join(f"--{name}" for name in missing)
        return f"no column {', '.join(missing)}; not read: {', '.join(others[:20])} (name what you want with {options})"

    def _text(self, columns: Iterable[str], row: Mapping[str, Any]) -> str:
        parts = [part for column in columns for part in _text_parts(column, row.get(column))]
        return " ".join(part for part in parts if part)

    def _tags(self, row: Mapping[str, Any]) -> list[str]:
        tags = []
        for column in self.tags:
            value = row.get(column)
            if isinstance(value, str):
                value = value.split(self.tag_separator)
            elif value is not None and not isinstance(value, list | tuple):
                raise CellError(column, f"must be a list or separated text, is {type(value).__name__}")
            for tag in value or ():
                if isinstance(tag, bool) or not isinstance(tag, str | int):
                    raise CellError(column, f"a tag must be text or a whole number, is {type(tag).__name__}")
                tags.append(str(tag).strip())
        filled = [tag for tag in tags if tag]
        kept = list(dict.fromkeys(filled))
        self.num_repeated_tags += len(filled) - len(kept)
        return kept


def _id_text(column: str, value: object) -> str:
    if value is None or value == "":
        raise CellError(column, "is missing", "give every row an id, or name the column of ids (--id)")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CellError(column, f"must be text or a whole number, is {type(value).__name__}")
    return str(value)


def _text_parts(column: str, value: object) -> list[str]:
    if value is None:
        return []
    parts = list(value) if isinstance(value, list | tuple) else [value]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise CellError(column, f"must be text or a list of text, is {type(part).__name__}")
    return [str(part).strip() for part in parts]


def _category(column: str, value: object) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # A column with gaps comes out of pandas as floating point, CSV has text, and some CSV has "3.0".
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
            return int(value)
        if isinstance(value, float | str) and float(value) == int(float(value)):
            return int(float(value))
    raise CellError(column, f"{value!r:.40} is no whole number", "number the categories, or map another --category")
