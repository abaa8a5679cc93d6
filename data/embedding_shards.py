"""One Parquet shard of an embeddings folder, and the folder's index: bytes in, checked tables out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json
from vidsim.data.schema import ID

EMBEDDING: Final = "embedding"
INDEX_FILE: Final = "embeddings.json"
METADATA_KEY: Final = b"vidsim"
FORMAT_VERSION: Final = 1
_SHARD: Final = re.compile(r"part-[0-9]{5}\.parquet")

Vectors = npt.NDArray[np.float32]


def shard_name(number: int) -> str:
    """File name of a shard: `part-00007.parquet`."""
    return f"part-{number:05d}.parquet"


def shard_files(folder: Path) -> list[Path]:
    """The shards in a folder, by number; what other programs call `part-...` is none."""
    return sorted(path for path in folder.glob("part-*.parquet") if _SHARD.fullmatch(path.name))


def write_shard(path: Path, ids: Sequence[str], vectors: Vectors, metadata: dict[str, Any]) -> None:
    """Write one shard whole or not at all: n ids, float32 [n, D], JSON metadata."""
    kind = pa.list_(pa.float32(), vectors.shape[1])
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    schema = pa.schema([(ID, pa.string()), (EMBEDDING, kind)], metadata={METADATA_KEY: text.encode()})
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
    table = pa.table([pa.array(ids, pa.string()), column], schema=schema)
    with atomic_path(path) as temporary:
        # Float vectors neither compress nor repeat; the checksum of each page finds damaged bytes.
        pq.write_table(
            table,
            temporary,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def read_index(folder: Path) -> dict[str, Any]:
    """Read `embeddings.json`.

    Raises:
        UserError: There is none (so the folder is unfinished, or no embeddings folder), or it is malformed.
    """
    if not (folder / INDEX_FILE).exists():
        num_parts = len(shard_files(folder))
        if num_parts:
            message = f"is not complete: {num_parts} shards but no {INDEX_FILE}"
            fix = "run the command that makes it again: it goes on where it stopped"
            raise UserError(message, file=folder, fix=fix)
        message = f"is no embeddings folder: no {INDEX_FILE}"
        raise UserError(message, file=folder, fix="make it with `vidsim embed`")
    index = read_json(folder / INDEX_FILE)
    kinds = {"num_rows": int, "dim": int, "metadata": dict, "shards": list, "complete": bool}
    for key, kind in {**kinds, "format_version": int}.items():
        if not isinstance(index, dict) or not isinstance(index.get(key), kind):
            raise UserError(f"must be of type {kind.__name__}", file=folder / INDEX_FILE, field=key)
    if index["format_version"] != FORMAT_VERSION or not index["complete"]:
        raise UserError(f"is not a complete index of version {FORMAT_VERSION}", file=folder / INDEX_FILE)
    for number, shard in enumerate(index["shards"]):
        if not isinstance(shard, dict) or shard.get("file") != shard_name(number):
            message = f"shard {number} must be {shard_name(number)}"
            raise UserError(message, file=folder / INDEX_FILE, field="shards")
    return index


def read_footer(path: Path) -> tuple[pa.Schema, int]:
    """Arrow schema and number of rows of a Parquet file, its columns and their types checked.

    Raises:
        UserError: Not a Parquet file, or no `id` column of strings, or no `embedding` column of floats.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"is not a readable Parquet file ({error})", file=path) from error
    _check_schema(schema, path)
    return schema, num_rows


def metadata_of(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """The JSON object under the metadata key `vidsim`; empty where another program wrote the file."""
    try:
        value = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError as error:
        raise UserError(f"the vidsim metadata is not JSON ({error})", file=path) from error
    if not isinstance(value, dict):
        raise UserError("the vidsim metadata is not a JSON object", file=path)
    return value


def _check_schema(schema: pa.Schema, path: Path) -> None:
    for name in (ID, EMBEDDING):
        if name not in schema.names:
            raise UserError(f"has no column '{name}' (columns: {', '.join(schema.names)})", file=path)
    if not (pa.types.is_string(schema.field(ID).type) or pa.types.is_large_string(schema.field(ID).type)):
        raise UserError(f"is {schema.field(ID).type}, not string", file=path, field=ID)
    kind = schema.field(EMBEDDING).type
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise UserError(f"is {kind}, not a list of floats", file=path, field=EMBEDDING)


def read_shard(path: Path) -> pa.Table:
    """Read the columns `id` (string) and `embedding`; damaged bytes and missing values are refused."""
    read_footer(path)
    try:
        table = pq.read_table(path, columns=[ID, EMBEDDING], memory_map=True, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"is damaged ({error})", file=path, fix="make the embeddings again") from error
    for name in (ID, EMBEDDING):
        if table[name].null_count:
            raise UserError(f"{table[name].null_count:,} values are missing (null)", file=path, field=name)
    return table.set_column(0, ID, table[ID].cast(pa.string()))


def stack_vectors(tables: Sequence[pa.Table], path: Path) -> Vectors:
    """All vectors as one float32 [N, D]; vectors of several widths and nulls inside a vector are refused."""
    columns = [table[EMBEDDING] for table in tables if len(table)]
    widths = [pc.min_max(pc.list_value_length(column)).as_py() for column in columns]
    dims = {value for width in widths for value in width.values()}
    if len(dims) != 1 or 0 in dims:
        raise UserError(f"the vectors have several widths: {sorted(dims)}", file=path, field=EMBEDDING)
    dim = dims.pop()
    vectors = np.empty((sum(len(column) for column in columns), dim), np.float32)
    start = 0
    for chunk in (chunk for column in columns for chunk in column.chunks):
        values = chunk.flatten()
        if values.null_count:
            raise UserError("a vector holds a missing value (null)", file=path, field=EMBEDDING)
        with np.errstate(over="ignore"):  # refused as not finite by the caller
            vectors[start : start + len(chunk)] = values.to_numpy(zero_copy_only=False).reshape(-1, dim)
        start += len(chunk)
    return vectors
