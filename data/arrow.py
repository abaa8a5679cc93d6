"""Read a data set: memory-mapped Arrow shards as one sequence of videos."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError, short_path
from vidsim.data import schema
from vidsim.data.embeddings import repeated
from vidsim.data.manifest import Manifest, ShardInfo, read_manifest
from vidsim.data.shards import check_unique_ids

VideoRow = dict[str, Any]
_TEXT_COLUMNS = (schema.ID, schema.TITLE, schema.ASR, schema.TAGS, schema.CATEGORY)
# What pyarrow raises on a damaged file: a broken structure, or names that are not UTF-8.
_DAMAGE = (pa.ArrowException, OSError, ValueError)
_MEND = "copy or convert the data again; `vidsim verify` checks every file"


_HAS_MADVISE = hasattr(mmap, "MADV_WILLNEED")  # not on Windows
if _HAS_MADVISE:
    _MADVISE = ctypes.CDLL(None).madvise
    _MADVISE.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True)
class _Part:
    """One data set folder among those a `Videos` is made of."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class _Cells:
    """A binary column as NumPy views of the file; an Arrow scalar would copy the cell."""

    offsets: npt.NDArray[np.int32]
    data: npt.NDArray[np.uint8]
    address: int  # of `data`

    def read_ahead(self, position: int) -> None:
        """Ask for the pages of a cell; otherwise each page of a file that is not in memory is waited for alone."""
        if not _HAS_MADVISE:
            return
        start = self.address + int(self.offsets[position])
        begin = start - start % mmap.PAGESIZE
        _MADVISE(begin, self.address + int(self.offsets[position + 1]) - begin, mmap.MADV_WILLNEED)


class Videos:
    """The videos of one or more data sets, memory-mapped.

    Opening reads no rows, and memory does not grow with them.

    `videos[i]` is a dict of `id`, `title`, `asr` (str), `tags` (list of str), `category` (int or None), and
    for each stream its vectors: float16 `[n, D]`, a read-only view into the file.

    Pickles as its folders, so that a data loader's worker opens the files itself.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        """Map the shards; use `open_videos` or `concat_videos`."""
        self._parts = tuple(parts)
        self.streams: dict[str, int] = {name: info.dim for name, info in parts[0].manifest.streams.items()}
        self._files: list[Path] = []  # of each record batch
        self._batches: list[pa.RecordBatch] = []
        self._starts: list[int] = []
        self._length = 0
        for part in self._parts:
            for shard in part.manifest.shards:
                path = part.folder / shard.file
                for batch in map_shard(path, shard, self.streams):
                    self._files.append(path)
                    self._batches.append(batch)
                    self._starts.append(self._length)
                    self._length += len(batch)
        self._names = tuple(schema.arrow_schema(self.streams).names)
        self._columns = tuple([*_TEXT_COLUMNS, *self.streams])
        # The columns of a batch, once its offsets and text have been checked (see `_arrays`).
        self._checked: list[dict[str, pa.Array | _Cells] | None] = [None] * len(self._batches)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folders and manifests, not the maps."""
        return Videos, (self._parts,)

    def __len__(self) -> int:
        """Number of videos."""
        return self._length

    def __getitem__(self, index: SupportsIndex) -> VideoRow:
        """One video.

        Raises:
            IndexError: No such row.
            UserError: The file is damaged there.
        """
        return self._row(*self._place(operator.index(index)), self._columns)

    def __iter__(self) -> Iterator[VideoRow]:
        """Every video, in order."""
        return (self._row(*self._place(index), self._columns) for index in range(self._length))

    def __repr__(self) -> str:
        """Name, number of videos and streams."""
        return f"Videos({self.name}, {self._length:,} videos, streams {self.streams})"

    def read(self, rows: Sequence[int], columns: Sequence[str] | None = None) -> list[VideoRow]:
        """Several videos, in the order asked, with all columns or only those named.

        Faster than one by one where the files are not in memory: all vectors are asked of the disk first.

        Raises:
            IndexError: No such row.
            KeyError: No such column.
        """
        names = self._columns if columns is None else tuple(columns)
        for name in names:
            if name not in self._columns:
                raise KeyError(f"no column {name!r}; there are {', '.join(self._columns)}")
        places = [self._place(int(row)) for row in rows]
        for name in self.streams.keys() & names:
            for number, position in places:
                cells = (self._checked[number] or self._arrays(number))[name]
                assert isinstance(cells, _Cells)
                cells.read_ahead(position)
        return [self._row(number, position, names) for number, position in places]

    def _place(self, index: int) -> tuple[int, int]:
        """Record batch of a row, and its position in there."""
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _row(self, number: int, position: int, columns: Sequence[str]) -> VideoRow:
        arrays = self._checked[number] or self._arrays(number)
        row: VideoRow = {}
        for name in columns:
            cells = arrays[name]
            if isinstance(cells, pa.Array):
                row[name] = cells[position].as_py()
                continue
            dim = self.streams[name]
            start, stop = cells.offsets[position : position + 2]
            try:
                row[name] = cells.data[start:stop].view(np.float16).reshape(-1, dim)
            except ValueError:
                raise UserError(
                    f"does not hold whole vectors of {dim} float16",
                    file=self._files[number],
                    record=position,
                    field=name,
                    fix=_MEND,
                ) from None
        return row

    def _arrays(self, number: int) -> dict[str, pa.Array | _Cells]:
        """Columns of a record batch, checked on first use: a flipped byte must not lead outside the file."""
        batch = self._batches[number]
        try:
            batch.validate(full=True)
        except _DAMAGE as error:
            raise UserError(f"is damaged ({error})", file=self._files[number], fix=_MEND) from None
        arrays: dict[str, pa.Array | _Cells] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            arrays[name] = _map_cells(column) if name in self.streams else column
        self._checked[number] = arrays
        return arrays

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column as Arrow, still memory-mapped: streams as bytes, `num_<stream>` as int32.

        Raises:
            KeyError: No such column.
            UserError: The column is damaged.
        """
        if name not in self._names:
            raise KeyError(f"no column {name!r}; there are {', '.join(self._names)}")
        number = self._names.index(name)
        kind = schema.arrow_schema(self.streams).field(name).type
        column = pa.chunked_array([batch.column(number) for batch in self._batches], kind)
        try:
            column.validate(full=True)
        except _DAMAGE as error:
            raise UserError(
                f"the column is damaged ({error})", file=self._parts[0].folder, field=name, fix=_MEND
            ) from None
        return column

    def ids(self) -> pa.ChunkedArray:
        """The ids in order, memory-mapped."""
        return self.column(schema.ID)

    def rows_of(self, ids: Sequence[str], *, asked_by: str | Path | None = None) -> npt.NDArray[np.int64]:
        """Row of each id asked, int64 `[len(ids)]`; an id may be asked several times.

        No index is kept: the ids asked become a hash table in Arrow's memory and the id column is scanned
        once.

        Args:
            ids: The ids.
            asked_by: File that they come from, which is then what the error is about.

        Raises:
            UserError: Ids that are not here, with their number and the first five.
        """
        asked = pa.array(ids, pa.string()).dictionary_encode()
        found = pc.index_in(self.ids(), value_set=asked.dictionary)
        which = found.fill_null(-1).to_numpy()
        rows = np.flatnonzero(which >= 0)
        row_of = np.full(len(asked.dictionary), -1, dtype=np.int64)
        row_of[which[rows]] = rows
        if (row_of < 0).any():
            missing = asked.dictionary.take(np.flatnonzero(row_of < 0)[:5]).to_pylist()
            count = f"{int((row_of < 0).sum()):,} of {len(row_of):,} videos"
            raise UserError(
                f"{count} are not in {self.place}, first {', '.join(missing)}",
                file=asked_by,
                fix="name the data set that holds them",
            )
        return row_of[asked.indices.to_numpy()]

    @property
    def manifest(self) -> Manifest:
        """The manifest; for several data sets, one that lists all their shards as `folder/file`."""
        if len(self._parts) == 1:
            return self._parts[0].manifest
        manifests = [part.manifest for part in self._parts]
        shards = [
            ShardInfo(file=f"{part.folder.name}/{shard.file}", num_rows=shard.num_rows, sha256=shard.sha256)
            for part in self._parts
            for shard in part.manifest.shards
        ]
        return Manifest(
            num_videos=len(self),
            streams=manifests[0].streams,
            has_tags=any(manifest.has_tags for manifest in manifests),
            shards=tuple(shards),
        )

    @property
    def folders(self) -> tuple[Path, ...]:
        """The data set folders."""
        return tuple(part.folder for part in self._parts)

    @property
    def place(self) -> str:
        """The data set folders, for messages."""
        return " and ".join(short_path(folder) for folder in self.folders)

    @property
    def name(self) -> str:
        """Folder names, joined by `+`."""
        return "+".join(part.folder.name for part in self._parts)

    def fingerprint(self) -> str:
        """SHA-256, as hex, over the digests of the shards in order: same files, same fingerprint."""
        digest = hashlib.sha256()
        for part in self._parts:
            for shard in part.manifest.shards:
                digest.update(bytes.fromhex(shard.sha256))
        return digest.hexdigest()


def open_videos(folder: str | Path) -> Videos:
    """Open a data set folder.

    Raises:
        UserError: No such folder, a missing or broken manifest, a missing, truncated or different shard;
            names the file. Content is not re-hashed: `vidsim verify` does that.
    """
    # Absolute: a worker that is spawned may stand in another folder.
    path = Path(folder).absolute()
    return Videos([_Part(path, read_manifest(path))])


def open_all(folders: Iterable[str | Path]) -> Videos:
    """Open one or several data set folders as one, rows in the order given.

    Raises:
        UserError: As `open_videos` and `concat_videos`.
    """
    return concat_videos([open_videos(folder) for folder in folders])


def concat_videos(sets: Sequence[Videos]) -> Videos:
    """Several data sets as one, rows in the order given.

    Raises:
        UserError: Nothing given, streams that disagree, or an id that stands in two of them.
    """
    if not sets:
        raise UserError("no data set to read", fix="name at least one data set folder")
    for videos in sets[1:]:
        if videos.streams != sets[0].streams:
            raise UserError(
                f"has {_describe(videos.streams)}, but {sets[0].place} has {_describe(sets[0].streams)}",
                file=videos.place,
                field="streams",
                fix="convert both with the same features",
            )
    if len(sets) == 1:
        return sets[0]
    joined = Videos([part for videos in sets for part in videos._parts])
    for folder in joined.folders:
        if joined.folders.count(folder) > 1:
            raise UserError("is named twice", file=folder, fix="name each data set once")
    if repeated(joined.ids()):
        shards = [
            (f"{part.folder.name}/{shard.file}", part.folder / shard.file)
            for part in joined._parts
            for shard in part.manifest.shards
        ]
        check_unique_ids(shards)
    return joined


def _describe(streams: Mapping[str, int]) -> str:
    return ", ".join(f"{name} of width {dim}" for name, dim in streams.items()) or "no streams"


def map_shard(path: Path, shard: ShardInfo, streams: Mapping[str, int]) -> list[pa.RecordBatch]:
    """Map the record batches of a shard and compare what can be compared without reading the rows.

    Raises:
        UserError: The file is missing, truncated, damaged, or not what the manifest says.
    """
    if not path.is_file():
        raise UserError("the manifest lists this shard, but there is no such file", file=path, fix=_MEND)
    size = path.stat().st_size
    if shard.num_bytes is not None and size != shard.num_bytes:
        what = "is truncated" if size < shard.num_bytes else "is longer than when it was written"
        raise UserError(f"{what}: {size:,} bytes, the manifest says {shard.num_bytes:,}", file=path, fix=_MEND)
    expected = schema.arrow_schema(streams)
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            found = [(field.name, str(field.type)) for field in reader.schema]
            batches = list(reader) if reader.schema.equals(expected) else []
    except _DAMAGE as error:
        raise UserError(f"is truncated or damaged ({error})", file=path, fix=_MEND) from None
    wanted = [(field.name, str(field.type)) for field in expected]
    if found != wanted:
        missing = [f"{name} ({kind})" for name, kind in wanted if (name, kind) not in found]
        detail = f"has no column {missing[0]}" if missing else f"has other columns: {found}"
        raise UserError(f"{detail}; the manifest asks for {wanted}", file=path, fix=_MEND)
    num_rows = sum(len(batch) for batch in batches)
    if num_rows != shard.num_rows:
        raise UserError(f"holds {num_rows:,} rows, the manifest says {shard.num_rows:,}", file=path, fix=_MEND)
    return [batch for batch in batches if len(batch)]


def _map_cells(column: pa.Array) -> _Cells:
    _, offsets, data = column.buffers()
    first = column.offset
    return _Cells(
        offsets=np.frombuffer(offsets, np.int32, count=first + len(column) + 1)[first:],
        data=np.frombuffer(data if data is not None else b"", np.uint8),
        address=0 if data is None else data.address,
    )
