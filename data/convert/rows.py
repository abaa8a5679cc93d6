"""Rows of a table file: JSONL, CSV, TSV or Parquet, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from vidsim.common.errors import UserError
from vidsim.common.files import require_readable

# Record number (line of a text file from 1, row of a Parquet file from 0) and the row, or why there is none.
NumberedRow = tuple[int, dict[str, Any] | UserError]

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}
FORMATS = ("jsonl", "csv", "tsv", "parquet")
_MAX_FIELD_CHARACTERS = 2**27
_PARQUET_ROWS = 500


def read_rows(path: str | Path, kind: str | None = None) -> Iterator[NumberedRow]:
    """Walk through a table's rows; memory is bounded by one row (Parquet: by one batch).

    Args:
        path: The file.
        kind: One of `FORMATS`; None goes by the suffix.

    Yields:
        The record number, and a dict of column -> value or the error of a row that cannot be read.

    Raises:
        UserError: No such file, unknown format, no header, a repeated column, or a quote that is not closed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", file=path, fix="name a JSONL, CSV, TSV or Parquet file with one video a row")
    require_readable(path)
    kind = kind or _FORMATS.get(path.suffix.lower())
    match kind:
        case "jsonl":
            return _read_jsonl(path)
        case "csv" | "tsv":
            return _read_delimited(path, kind)
        case "parquet":
            return _read_parquet(path)
        case _:
            raise UserError(
                f"the suffix {path.suffix!r} is not known", file=path, fix=f"say --format {'|'.join(FORMATS)}"
            )


def _read_jsonl(path: Path) -> Iterator[NumberedRow]:
    def refuse_constant(token: str) -> NoReturn:
        raise ValueError(f"{token} is not JSON")

    def refuse_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("a key stands twice")
        return result

    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                value = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=refuse_duplicates)
            # RecursionError: a line of a hundred thousand opening brackets.
            except (ValueError, RecursionError) as error:
                yield number, UserError(f"is not valid JSON ({error})", file=path, record=number)
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                kind = type(value).__name__
                yield number, UserError(f"must be a JSON object, is {kind}", file=path, record=number)


def _read_delimited(path: Path, kind: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    # Bytes that are not UTF-8 become lone surrogates, which the writer refuses with row and field.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if kind == "csv":
            reader = csv.reader(file, strict=True)
        else:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(_guarded(reader, path), (0, []))[1]
        if isinstance(header, UserError):
            raise header
        if not header:
            raise UserError("is empty", file=path, fix="write the names of the columns into the first line")
        columns = [name.strip() for name in header]
        for name in columns:
            if columns.count(name) > 1:
                raise UserError(f"the column {name!r} stands twice", file=path, record=1)
        for number, fields in _guarded(reader, path):
            if isinstance(fields, UserError):
                yield number, fields
            elif len(fields) != len(columns):
                what = f"{len(fields)} fields, the header has {len(columns)}"
                yield number, UserError(what, file=path, record=number, fix="check separators and quotes")
            else:
                yield number, dict(zip(columns, fields, strict=True))


def _guarded(reader: Any, path: Path) -> Iterator[tuple[int, list[str] | UserError]]:
    """Lines of a csv reader that are not blank; a malformed line becomes an error, and the reader goes on.

    Raises:
        UserError: What is malformed has several lines: a quote that is not closed takes the rows after it along.
    """
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what, last = f"is malformed ({error})", reader.line_num
            if last > start:
                what += f", and what is quoted there goes on to line {last}"
                raise UserError(what, file=path, record=start, fix="close the quote") from None
            yield start, UserError(what, file=path, record=start)
            continue
        if fields:
            yield reader.line_num, fields


def _read_parquet(path: Path) -> Iterator[NumberedRow]:
    number = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"cannot be read as Parquet ({error})", file=path, record=number) from None
