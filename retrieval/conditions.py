"""Metadata of videos: tables read by id, and conditions on them as written on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from vidsim.common.errors import UserError
from vidsim.data.embeddings import positions, repeated, shown
from vidsim.data.schema import ID

_CONDITION: Final = re.compile(r"\s*([^=!<>]+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")
_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": lambda field, value: field == value,
    "!=": lambda field, value: field != value,
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
}


def read_metadata(path: str | Path, ids: Sequence[str]) -> pa.Table:
    """The columns of a table for some ids, in their order.

    Args:
        path: Parquet, CSV or TSV with a column `id` and any others; ids may be numbers.
        ids: Every one must have exactly one row; further rows of the table are left out.

    Raises:
        UserError: Not readable, no column `id`, repeated ids, ids without a row.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("cannot be read: no such file", file=path, fix="give a Parquet, CSV or TSV file")
    try:
        table = _read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot be read ({error})", file=path, fix="give a Parquet, CSV or TSV file") from error
    if table.column_names.count(ID) != 1:
        raise UserError(f"has the columns {', '.join(table.column_names)}, not one called {ID!r}", file=path)
    names = table[ID].cast(pa.string())
    if twice := repeated(names):
        raise UserError(f"{len(twice):,} ids occur more than once: {shown([str(one) for one in twice])}", file=path)
    rows = positions(ids, names)
    if (rows < 0).any():
        missing = [video for video, row in zip(ids, rows.tolist(), strict=True) if row < 0]
        raise UserError(f"has no row for {len(missing):,} of {len(ids):,} ids: {shown(missing)}", file=path)
    return table.drop_columns([ID]).take(pa.array(rows))


def _read_table(path: Path) -> pa.Table:
    if path.suffix.lower() == ".parquet":
        return pq.read_table(path)
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    # Ids stay text: 007 is not 7.
    options = pa_csv.ConvertOptions(column_types={ID: pa.string()}, strings_can_be_null=True)
    return pa_csv.read_csv(path, parse_options=pa_csv.ParseOptions(delimiter=delimiter), convert_options=options)


@dataclass(frozen=True)
class Condition:
    """One condition on the metadata of a video.

    Attributes:
        column: Which column.
        operator: One of = != < <= > >=.
        value: What it is compared with, of the column's type.
    """

    column: str
    operator: str
    value: pa.Scalar


def read_conditions(conditions: Sequence[str], schema: pa.Schema) -> list[Condition]:
    """Conditions such as `category=3` or `seconds<60`.

    Args:
        conditions: Column, one of = != < <= > >=, and a value of the column's type.
        schema: The columns that there are.

    Raises:
        UserError: Not of this form, an unknown column, a value of another type.
    """
    result = []
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None:
            message = f"{condition!r} is not a condition"
            raise UserError(message, field="--where", fix="write COLUMN=VALUE, or !=, <, <=, >, >=")
        column, operator, text = found.groups()
        if schema.names.count(column) != 1:
            known = ", ".join(schema.names) or "none (make the index with --metadata)"
            message = f"there is no metadata column {column!r}"
            raise UserError(message, field="--where", fix=f"the columns are: {known}")
        kind = schema.field(column).type
        try:
            value = pa.scalar(text).cast(kind)
        except (pa.ArrowException, NotImplementedError) as error:
            raise UserError(f"{text!r} is not a value of column {column!r} ({kind})", field="--where") from error
        result.append(Condition(column, operator, value))
    return result


def parse_conditions(conditions: Sequence[str], schema: pa.Schema) -> pc.Expression | None:
    """One expression that holds where all conditions hold; None if there are none. See `read_conditions`."""
    parts = [_OPERATORS[one.operator](pc.field(one.column), one.value) for one in read_conditions(conditions, schema)]
    return reduce(lambda first, second: first & second, parts) if parts else None
