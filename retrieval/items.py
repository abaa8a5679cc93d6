"""The table beside the vectors of an index: key, id and metadata of each video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError
from vidsim.data.schema import ID

KEY: Final = "key"


def new_items(
    expected: pa.Schema, keys: npt.NDArray[np.int64], ids: Sequence[str], metadata: pa.Table | None
) -> pa.Table:
    """A table with key, id and the expected metadata columns.

    Args:
        expected: The metadata columns of the index.
        keys: int64 [n].
        ids: n ids.
        metadata: n rows, whose columns can be cast to what is expected; None: no columns.

    Raises:
        UserError: Other columns, another number of rows, values that cannot be cast.
    """
    columns: dict[str, Any] = {KEY: pa.array(keys, pa.int64()), ID: pa.array(list(ids), pa.string())}
    given = metadata.schema if metadata is not None else pa.schema([])
    if sorted(given.names) != sorted(expected.names):
        columns_of_index = ", ".join(expected.names) or "none"
        fix = f"give --metadata with the columns {columns_of_index}" if expected.names else "leave --metadata away"
        what = f"the metadata columns are {', '.join(given.names) or 'none'}, those of the index {columns_of_index}"
        raise UserError(what, field="--metadata", fix=fix)
    if metadata is not None and metadata.num_rows != len(ids):
        raise UserError(f"{metadata.num_rows} rows of metadata for {len(ids)} ids")
    for field in expected:
        try:
            columns[field.name] = metadata[field.name].cast(field.type)  # type: ignore[index]
        except pa.ArrowException as error:
            raise UserError(f"cannot be turned into {field.type} ({error})", field=field.name) from error
    return pa.table(columns)


def rows_where(metadata: pa.Table, condition: pc.Expression) -> npt.NDArray[np.int64]:
    """Rows that fulfil a condition, rising, int64.

    Raises:
        UserError: Unknown columns, or a comparison of unlike types.
    """
    numbered = metadata.append_column(KEY, pa.array(np.arange(metadata.num_rows)))
    try:
        rows: npt.NDArray[np.int64] = numbered.filter(condition)[KEY].to_numpy()
    except (pa.ArrowException, TypeError) as error:
        columns = ", ".join(metadata.column_names) or "none"
        message = f"the condition cannot be used ({str(error).splitlines()[0]})"
        raise UserError(message, field="where", fix=f"the metadata columns are: {columns}") from error
    return rows
