"""Who watched what and when, read in blocks from Parquet, CSV, TSV or npz files of any length.

A block is a table with the columns `key: string` (whose watches belong together: the user, or user and session),
`video: string` and, unless sessions are sets without an order, `time: float64` in seconds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import scipy.sparse

from vidsim.common.errors import UserError
from vidsim.common.files import require_readable

KEY, VIDEO, TIME = "key", "video", "time"
_BLOCK_ROWS = 2**18
_BLOCK_BYTES = 2**24
_BYTES_OF_A_LINE = 24  # a short line of CSV: two ids and a time
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_SEPARATOR = "\x1f"  # no id holds a control character


@dataclass(frozen=True, kw_only=True)
class SessionColumns:
    """Which column says what.

    Attributes:
        user: Whose watch it is.
        video: What was watched.
        time: When: seconds, or a date and time; None: sessions are sets.
        session: Further divides a user's watches; None: they are divided by pauses alone.
        rating: How the user liked it; None: every watch counts.
        min_rating: Rows with a lower rating are left out.
    """

    user: str = "user"
    video: str = "video"
    time: str | None = "time"
    session: str | None = None
    rating: str | None = None
    min_rating: float | None = None

    def names(self) -> list[str]:
        """The columns that must be there."""
        return [name for name in (self.user, self.video, self.time, self.session, self.rating) if name is not None]


def estimated_rows(path: Path) -> int:
    """About how many watches a file holds (exactly for Parquet), for choosing the number of buckets."""
    if path.suffix == ".parquet":
        return int(_parquet(path).metadata.num_rows)
    size = path.stat().st_size if path.is_file() else 0
    return size // (4 if path.suffix == ".npz" else _BYTES_OF_A_LINE) + 1


def read_sessions(path: Path, columns: SessionColumns) -> Iterator[tuple[pa.Table, int]]:
    """Blocks of watches (see above) and how many rows each had before the rating threshold.

    Args:
        path: `.parquet`, `.csv`, `.tsv` or `.txt` (tabs) with a header, or `.npz`: one array for each column, or a
            sparse matrix users x videos as `scipy.sparse.save_npz` writes it, whose values are ratings.
        columns: Their names; not looked at for a sparse matrix, which has no times.

    Raises:
        UserError: No such file, a missing column, an empty id, a time or rating that is no number; names the row.
    """
    if not path.is_file():
        raise UserError("no such file", file=path, fix="name a file of watches: user, video, time")
    require_readable(path)
    first = 2 if path.suffix in _DELIMITERS else 0  # as people count: the header is line 1
    for raw in _raw_blocks(path, columns):
        yield _checked(raw, columns, path, first), len(raw)
        first += len(raw)


def _raw_blocks(path: Path, columns: SessionColumns) -> Iterator[pa.Table]:
    if path.suffix == ".parquet":
        file = _parquet(path)
        _require(columns.names(), file.schema_arrow.names, path)
        for batch in file.iter_batches(_BLOCK_ROWS, columns=columns.names()):
            yield pa.Table.from_batches([batch])
    elif path.suffix in _DELIMITERS:
        yield from _csv_blocks(path, columns.names())
    elif path.suffix == ".npz":
        table = _npz_table(path, columns)
        for start in range(0, len(table), _BLOCK_ROWS):
            yield table.slice(start, _BLOCK_ROWS)
    else:
        raise UserError(f"the suffix {path.suffix!r} is not known", file=path, fix="use .parquet, .csv, .tsv or .npz")


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"is not a Parquet file ({error})", file=path) from None


def _require(wanted: Sequence[str], there: Sequence[str], path: Path) -> None:
    for name in wanted:
        if list(there).count(name) != 1:
            held = f"it holds {', '.join(there[:12])}" if there else "it has no columns"
            how = "is there several times" if name in there else "is not there"
            fix = "name the columns with --user, --video, --time (no times: --unordered)"
            raise UserError(f"the column {how}; {held}", file=path, field=name, fix=fix)


def _csv_blocks(path: Path, names: list[str]) -> Iterator[pa.Table]:
    parse = pacsv.ParseOptions(delimiter=_DELIMITERS[path.suffix])
    read = pacsv.ReadOptions(block_size=_BLOCK_BYTES)
    convert = pacsv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
    try:
        with pacsv.open_csv(path, read_options=read, parse_options=parse) as reader:
            _require(names, reader.schema.names, path)
        with pacsv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"is not a readable table ({error})", file=path) from None


def _npz_table(path: Path, columns: SessionColumns) -> pa.Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            if "format" in file.files and "shape" in file.files:
                return _matrix_table(path, columns)
            _require(columns.names(), file.files, path)
            arrays = {name: file[name] for name in columns.names()}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"is not a readable npz file ({error})", file=path) from None
    lengths = {name: array.shape for name, array in arrays.items()}
    if any(len(shape) != 1 for shape in lengths.values()) or len(set(lengths.values())) != 1:
        raise UserError(f"the arrays must be lists of one length, they are {lengths}", file=path)
    return pa.table({name: pa.array(array) for name, array in arrays.items()})


def _matrix_table(path: Path, columns: SessionColumns) -> pa.Table:
    matrix = scipy.sparse.coo_array(scipy.sparse.load_npz(path))
    if columns.time is not None:
        raise UserError("is a matrix users x videos, which has no times", file=path, fix="add --unordered")
    if columns.session is not None:
        raise UserError("is a matrix users x videos, which has no sessions", file=path, field="session")
    order = np.lexsort((matrix.col, matrix.row))
    table = {columns.user: matrix.row[order], columns.video: matrix.col[order]}
    if columns.rating is not None:
        table[columns.rating] = matrix.data[order]
    return pa.table({name: pa.array(array) for name, array in table.items()})


def _checked(raw: pa.Table, columns: SessionColumns, path: Path, first: int) -> pa.Table:
    key = _ids(raw, columns.user, path, first)
    if columns.session is not None:
        key = pc.binary_join_element_wise(key, _ids(raw, columns.session, path, first), _SEPARATOR)
    table = {KEY: key, VIDEO: _ids(raw, columns.video, path, first)}
    if columns.time is not None:
        table[TIME] = _numbers(raw, columns.time, path, first)
    result = pa.table(table)
    if columns.rating is not None and columns.min_rating is not None:
        rating = _numbers(raw, columns.rating, path, first)
        result = result.filter(pc.greater_equal(rating, columns.min_rating))
    return result


def _ids(raw: pa.Table, name: str, path: Path, first: int) -> pa.ChunkedArray:
    """A column of ids as text."""
    column = raw[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text or pa.types.is_integer(kind)):
        raise UserError(f"ids must be text or whole numbers, not {kind}", file=path, field=name)
    text = column.cast(pa.string())
    # A tab or line break would break every text file the id may later stand in.
    bad = pc.fill_null(pc.match_substring_regex(text, r"^\s*$|[\x00-\x1f\x7f]"), True)
    _refuse_first(bad, path, first, name, "is empty or holds control characters")
    return text


def _numbers(raw: pa.Table, name: str, path: Path, first: int) -> pa.ChunkedArray:
    """A column of finite numbers, float64; dates and times become seconds."""
    column = raw[name]
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _parsed(column, name, path, first)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(column.type):
        # What is finer than microseconds is of no use here.
        options = pc.CastOptions(pa.timestamp("us", column.type.tz), allow_time_truncate=True)
        column = pc.divide(column.cast(options=options).cast(pa.int64()).cast(pa.float64()), 1e6)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UserError(f"must be numbers or times, is {column.type}", file=path, field=name)
    numbers = column.cast(pa.float64(), safe=False)
    bad = pc.fill_null(pc.invert(pc.is_finite(numbers)), True)
    _refuse_first(bad, path, first, name, "is missing or not finite")
    return numbers


def _parsed(column: pa.ChunkedArray, name: str, path: Path, first: int) -> pa.ChunkedArray:
    """Text as numbers, or else as dates and times."""
    for kind in (pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    for row, text in enumerate(column.to_pylist()):
        try:
            float(text)
        except (TypeError, ValueError):
            what = f"{text!r:.40} is neither a number nor a date and time"
            raise UserError(what, file=path, record=row + first, field=name) from None
    raise UserError("mixes numbers with something else", file=path, field=name)


def _refuse_first(bad: pa.ChunkedArray, path: Path, first: int, name: str, what: str) -> None:
    if not pc.any(bad).as_py():
        return
    row = pc.index(bad, True).as_py()
    raise UserError(what, file=path, record=row + first, field=name, fix="mend or remove the row")
