"""The embeddings file: Parquet shards that anything can read, written whole, resumed by shard.

A folder holds `part-00000.parquet`, ... and, written last, `embeddings.json`; a single `.parquet` file is
read too. Columns: `id: string`, `embedding: fixed_size_list<float32>[D]`. The schema metadata has the key
`vidsim`, a JSON object with the fingerprints of the model and of the data. Rows keep the order of the input.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidsim.common.errors import UserError
from vidsim.common.files import write_json
from vidsim.data.embedding_shards import (
    EMBEDDING,
    FORMAT_VERSION,
    INDEX_FILE,
    Vectors,
    metadata_of,
    read_footer,
    read_index,
    read_shard,
    shard_files,
    shard_name,
    stack_vectors,
    write_shard,
)
from vidsim.data.schema import ID

SHARD_SIZE: Final = 65_536
_NUM_SHOWN: Final = 5
_MOST_COMPARED: Final = 200_000  # ids, for spelling
_GO_ON: Final = "run the same command again: it goes on where it stopped"
_EMBED_AGAIN: Final = "embed the data set again"
_START_AFRESH: Final = "choose another --out, or start afresh with --overwrite"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors with their video ids.

    Attributes:
        ids: N distinct ids, in the order of the input.
        vectors: float32 [N, D], finite.
        metadata: `model` and `data` (fingerprints or None) and `normalized` (bool), if vidsim wrote the file.
        name: Where they came from, for messages.
    """

    ids: list[str]
    vectors: Vectors
    metadata: dict[str, Any] = field(default_factory=dict)
    name: str = "embeddings"

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

    def rows_of(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row of each id, int64 [len(ids)].

        Raises:
            UserError: Ids without an embedding: how many, and the first five.
        """
        rows = positions(ids, self.ids)
        if (rows < 0).any():
            missing = list(dict.fromkeys(ids[i] for i in np.flatnonzero(rows < 0).tolist()))
            asked = f"{len(missing):,} of the {len(set(ids)):,} ids asked for"
            message = f"has no embedding for {asked}: {shown(missing)}"
            raise UserError(message, file=self.name, fix="embed the data set that holds them")
        return rows


def shown(ids: Sequence[str]) -> str:
    """The first five ids, for a message."""
    more = f" and {len(ids) - _NUM_SHOWN:,} more" if len(ids) > _NUM_SHOWN else ""
    return ", ".join(ids[:_NUM_SHOWN]) + more


def did_you_mean(id: str, among: Sequence[str] | pa.ChunkedArray, otherwise: str) -> str:
    """What to do about an unknown id: take one that is spelled like it, or `otherwise`."""
    known = among[:_MOST_COMPARED]
    close = difflib.get_close_matches(id, known.to_pylist() if isinstance(known, pa.ChunkedArray) else known, 3)
    return f"did you mean {', '.join(close)}?" if close else otherwise


def positions(ids: Sequence[str], among: Sequence[str]) -> npt.NDArray[np.int64]:
    """Position of each of `ids` in the distinct ids `among`, int64; -1 where it is not there."""
    found = pc.index_in(pa.array(ids, pa.string()), value_set=pa.array(among, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def repeated(ids: Sequence[str] | pa.ChunkedArray) -> list[str]:
    """The ids that occur more than once, in the order of their first occurrence."""
    column = ids if isinstance(ids, pa.ChunkedArray) else pa.array(ids, pa.string())
    if pc.count_distinct(column).as_py() == len(column):
        return []
    counts = pc.value_counts(column)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    return list(twice.field("values").to_pylist())


class EmbeddingWriter:
    """Writes an embeddings folder in shards; a run that was cut off goes on after the last whole shard.

    Use it as a context manager and write rows from `num_done` on, in the order of the input. Leaving the
    block normally writes the last shard and `embeddings.json`; an exception leaves only the whole shards.

    Args:
        folder: Where to write; made if it is not there.
        dim: Width D of a vector.
        metadata: Fingerprints: `model`, `data`, `normalized` and whatever else describes the vectors (JSON
            values). Shards already in the folder must have the same.
        shard_size: Rows of a shard.
        num_rows: How many rows there must be in the end, if that is known.
        overwrite: Remove the shards of an earlier run instead of going on after them.

    Raises:
        UserError: The folder holds embeddings of another model, data set or width, or a shard is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        dim: int,
        metadata: dict[str, Any],
        shard_size: int = SHARD_SIZE,
        *,
        num_rows: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Look at what is in the folder already."""
        if dim < 1 or shard_size < 1:
            raise UserError(f"dim {dim} and shard_size {shard_size} must be at least 1", file=folder)
        self.folder = Path(folder)
        self.dim = dim
        self.metadata = json.loads(json.dumps(metadata, allow_nan=False))
        self._shard_size = shard_size
        self._expected_rows = num_rows
        self._shards: list[dict[str, Any]] = []
        self._ids: list[str] = []
        self._vectors: list[Vectors] = []
        self._num_buffered = 0
        self.is_complete = False
        self._prepare_folder(overwrite)

    @property
    def num_done(self) -> int:
        """Rows on the disk and in the buffer: the number of input rows to skip when a run goes on."""
        return sum(shard["num_rows"] for shard in self._shards) + self._num_buffered

    def write(self, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        """Add rows.

        Args:
            ids: n ids.
            vectors: float [n, D]; kept as float32.

        Raises:
            UserError: Wrong shape, an id that is not text, a vector that is not finite.
        """
        if self.is_complete:
            raise UserError("is complete already", file=self.folder, fix=_START_AFRESH)
        block = _checked_block(ids, vectors, self.dim, self.folder)
        self._ids.extend(ids)
        self._vectors.append(block)
        self._num_buffered += len(block)
        while self._num_buffered >= self._shard_size:
            self._flush(self._shard_size)

    def close(self) -> None:
        """Write the last shard and `embeddings.json`.

        Raises:
            UserError: Fewer or more rows than `num_rows`, or an id that occurs twice.
        """
        if self.is_complete:
            return
        while self._num_buffered:
            self._flush(self._shard_size)
        if self._expected_rows is not None and self.num_done != self._expected_rows:
            message = f"{self.num_done:,} of {self._expected_rows:,} rows were written"
            raise UserError(message, file=self.folder, fix=_GO_ON)
        tables = [pq.read_table(self.folder / shard["file"], columns=[ID]) for shard in self._shards]
        if tables:
            _refuse_repeated(pa.concat_tables(tables)[ID], self.folder)
        index = {
            "format_version": FORMAT_VERSION,
            "num_rows": self.num_done,
            "dim": self.dim,
            "metadata": self.metadata,
            "shards": self._shards,
            "complete": True,
        }
        write_json(self.folder / INDEX_FILE, index)
        self.is_complete = True

    def __enter__(self) -> EmbeddingWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the folder unless an exception is on its way."""
        if kind is None:
            self.close()

    def _flush(self, num_rows: int) -> None:
        vectors = np.concatenate(self._vectors) if len(self._vectors) != 1 else self._vectors[0]
        name = shard_name(len(self._shards))
        write_shard(self.folder / name, self._ids[:num_rows], vectors[:num_rows], self.metadata)
        self._shards.append({"file": name, "num_rows": min(num_rows, len(vectors))})
        self._ids, self._vectors = self._ids[num_rows:], [vectors[num_rows:]]
        self._num_buffered = len(self._ids)

    def _prepare_folder(self, overwrite: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError("is a file, not a folder", file=self.folder, fix="choose another --out")
        for leftover in self.folder.glob(".part-*.tmp"):
            leftover.unlink()
        if overwrite:
            for old in [self.folder / INDEX_FILE, *shard_files(self.folder)]:
                old.unlink(missing_ok=True)
        for number, path in enumerate(shard_files(self.folder)):
            if path.name != shard_name(number):
                raise UserError(f"{shard_name(number)} is missing", file=self.folder, fix=_START_AFRESH)
            self._shards.append({"file": path.name, "num_rows": self._rows_of_shard(path)})
        if (self.folder / INDEX_FILE).exists():
            index = read_index(self.folder)
            self._require_same(index["metadata"], index["dim"], self.folder / INDEX_FILE)
            if index["shards"] != self._shards:
                raise UserError(f"the shards are not those of {INDEX_FILE}", file=self.folder, fix=_START_AFRESH)
            if self._expected_rows not in (None, index["num_rows"]):
                message = f"is complete with {index['num_rows']:,} rows, not {self._expected_rows:,}"
                raise UserError(message, file=self.folder, fix=_START_AFRESH)
            self.is_complete = True

    def _rows_of_shard(self, path: Path) -> int:
        schema, num_rows = read_footer(path)
        self._require_same(metadata_of(schema, path), schema.field(EMBEDDING).type.list_size, path)
        return num_rows

    def _require_same(self, metadata: dict[str, Any], dim: int, path: Path) -> None:
        keys = [key for key in {**metadata, **self.metadata} if metadata.get(key) != self.metadata.get(key)]
        if dim != self.dim:
            keys.append("dim")
        if keys:
            message = f"holds the embeddings of another run (not the same: {', '.join(sorted(keys))})"
            raise UserError(message, file=path, fix=_START_AFRESH)


def write_embeddings(
    path: str | Path, ids: Sequence[str], vectors: npt.ArrayLike, metadata: dict[str, Any] | None = None
) -> None:
    """Write embeddings at once.

    Args:
        path: A single file if it ends in `.parquet`, otherwise a folder. What is there already is replaced.
        ids: N distinct ids.
        vectors: float [N, D]; kept as float32.
        metadata: See `EmbeddingWriter`.

    Raises:
        UserError: Wrong shape, repeated ids, a vector that is not finite, a full disk.
    """
    path = Path(path)
    array = np.asarray(vectors)
    dim = array.shape[1] if array.ndim == 2 else 0
    block = _checked_block(ids, array, dim, path)
    _refuse_repeated(ids, path)
    if path.suffix == ".parquet":
        write_shard(path, ids, block, metadata or {})
        return
    with EmbeddingWriter(path, dim, metadata or {}, num_rows=len(ids), overwrite=True) as writer:
        writer.write(ids, block)


def read_embeddings(path: str | Path) -> Embeddings:
    """Read an embeddings folder or a single Parquet file (columns `id` and `embedding`, whoever wrote it).

    Raises:
        UserError: Nothing there, an unfinished folder, a damaged shard, wrong columns, vectors of several
            widths, repeated ids, values that are missing or not finite (naming the ids).
    """
    path = Path(path)
    if path.is_dir():
        index = read_index(path)
        files = [path / shard["file"] for shard in index["shards"]]
        metadata = index["metadata"]
    elif path.suffix == ".npy":
        fix = "name what `vidsim embed`, `embed-features` or `factors` wrote"
        raise UserError("is an array, not embeddings", file=path, fix=fix)
    elif path.is_file():
        files = [path]
        metadata = metadata_of(read_footer(path)[0], path)
    else:
        raise UserError("no such embeddings folder or file", file=path, fix="make it with `vidsim embed`")
    tables = [read_shard(file) for file in files]
    if path.is_dir() and [len(table) for table in tables] != [shard["num_rows"] for shard in index["shards"]]:
        raise UserError(f"a shard has another number of rows than {INDEX_FILE} says", file=path, fix=_EMBED_AGAIN)
    if not sum(len(table) for table in tables):
        raise UserError("holds no embeddings", file=path)
    ids = pa.chunked_array([chunk for table in tables for chunk in table[ID].chunks], pa.string())
    _refuse_repeated(ids, path)
    vectors = stack_vectors(tables, path)
    id_list = ids.to_pylist()
    _refuse_non_finite(id_list, vectors, path)
    return Embeddings(id_list, vectors, metadata, str(path))


def align(members: Sequence[Embeddings]) -> tuple[list[str], list[Vectors]]:
    """Bring several embeddings of the same videos into the order of the first.

    Args:
        members: Embeddings of one set of ids; each may have its own width and order.

    Returns:
        The ids and one float32 [N, D_i] for each member (not copied where the order is the same already).

    Raises:
        UserError: The ids differ: how many are missing and extra in which member, and the first five of them.
    """
    ids = members[0].ids
    aligned = []
    complaints = []
    for member in members:
        if member.ids == ids:
            aligned.append(member.vectors)
            continue
        rows = positions(ids, member.ids)
        missing = [ids[i] for i in np.flatnonzero(rows < 0).tolist()]
        extra = [member.ids[i] for i in np.flatnonzero(positions(member.ids, ids) < 0).tolist()]
        if missing:
            complaints.append(f"{member.name} lacks {len(missing):,} of them ({shown(missing)})")
        if extra:
            complaints.append(f"{member.name} has {len(extra):,} others ({shown(extra)})")
        aligned.append(member.vectors[rows])
    if complaints:
        raise UserError(
            f"has {len(ids):,} ids, but {'; '.join(complaints)}",
            file=members[0].name,
            fix="embed the same data set with every model",
        )
    return ids, aligned


def _checked_block(ids: Sequence[str], vectors: npt.ArrayLike, dim: int, path: Path) -> Vectors:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused below
        block = np.ascontiguousarray(vectors, dtype=np.float32)
    if block.ndim != 2 or dim < 1 or block.shape != (len(ids), dim):
        message = f"an array [{len(ids)}, {dim}] was expected, this one is {list(block.shape)}"
        raise UserError(message, file=path)
    wrong = next((i for i, value in enumerate(ids) if not isinstance(value, str) or not value), None)
    if wrong is not None:
        raise UserError(f"row {wrong}: {ids[wrong]!r} is not a text id", file=path, field=ID)
    _refuse_non_finite(ids, block, path)
    return block


def _refuse_repeated(ids: Sequence[str] | pa.ChunkedArray, path: Path) -> None:
    twice = repeated(ids)
    if twice:
        message = f"{len(twice):,} ids occur more than once: {shown(twice)}"
        raise UserError(message, file=path, field=ID, fix="keep one row for each id")


def _refuse_non_finite(ids: Sequence[str], vectors: Vectors, path: Path) -> None:
    # In float64 the sum of a float32 row is finite unless the row is not: one pass, no [N, D] of booleans.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float64)))
    if len(suspects):
        bad = [ids[i] for i in suspects.tolist()]
        message = f"{len(bad):,} embeddings hold NaN or infinity: {shown(bad)}"
        raise UserError(message, file=path, field=EMBEDDING, fix=_EMBED_AGAIN)
