"""Write a data set: checked video rows into Arrow shards, and the manifest over them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, write_json
from vidsim.data import schema
from vidsim.data.embeddings import repeated
from vidsim.data.manifest import Manifest, ShardInfo, StreamInfo, check_stream_names
from vidsim.data.rows import FieldError, check_row

_BATCH_ROWS = 500
_BATCH_BYTES = 64 * 2**20
# Lengths above this are rounded to thousands, so that a histogram stays small.
_EXACT_LENGTHS = 20_000

Histogram = dict[int, int]  # length -> rows


class ShardWriter:
    """Write one Arrow shard, checking every row.

    The file appears whole when the `with` block ends well, or not at all.

    Args:
        path: The Arrow file to write.
        streams: Width of a vector of each stream, `{"frames": 1536}`.
        source: What the rows come from; named in error messages and in the manifest.
        source_sha256: Digest of the source file, for the manifest.

    Memory is bounded by one batch (500 rows or 64 MiB).
    """

    def __init__(
        self,
        path: str | Path,
        streams: Mapping[str, int],
        *,
        source: str | None = None,
        source_sha256: str | None = None,
    ) -> None:
        """Check the stream names; nothing is written before the `with` block begins."""
        self.path = Path(path)
        check_stream_names(streams, self.path)
        self.streams = dict(streams)
        self.num_rows = 0
        self.stats: dict[str, Histogram] = {}
        self._source = source
        self._source_sha256 = source_sha256
        self._schema = schema.arrow_schema(self.streams)
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        self._num_bytes = 0
        self._info: ShardInfo | None = None
        measured = (schema.TITLE, schema.ASR, schema.TAGS, *self.streams)
        self.stats = {name: {} for name in measured}

    def __enter__(self) -> ShardWriter:
        """Open the temporary file."""
        self._atomic = atomic_path(self.path)
        self._file = _HashingFile(self._atomic.__enter__())
        self._stream = pa.ipc.new_stream(pa.PythonFile(self._file, mode="w"), self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file and move it into place, or remove it."""
        if error is None:
            try:
                self._flush()
                self._stream.close()
                self._file.close()
            except BaseException as failure:
                self._abandon(failure)
                raise
            self._atomic.__exit__(None, None, None)
            self._info = ShardInfo(
                file=self.path.name,
                num_rows=self.num_rows,
                sha256=self._file.digest.hexdigest(),
                num_bytes=self._file.num_bytes,
                source=self._source,
                source_sha256=self._source_sha256,
                stats=self.stats,
            )
            return
        self._abandon(error)

    @property
    def info(self) -> ShardInfo:
        """What the manifest says of this shard; there once the block has ended."""
        if self._info is None:
            raise RuntimeError("the shard is not finished")
        return self._info

    def write(self, row: Mapping[str, Any], *, record: int | str | None = None) -> None:
        """Check a row and add it.

        Args:
            row: `id` and any of title, asr (str), tags (list of str), category (int or None), and for each
                stream its vectors: bytes with `num_<stream>`, or float16 `[n, D]`.
            record: How errors call the row; its number in this shard by default.

        Raises:
            UserError: Names source, record and field.
        """
        try:
            cells = check_row(row, self.streams)
        except FieldError as error:
            raise UserError(
                error.message,
                file=self._source or self.path,
                record=self.num_rows if record is None else record,
                field=error.field,
                fix=error.fix,
            ) from None
        for name, value in cells.items():
            self._columns[name].append(value)
        for name, histogram in self.stats.items():
            length = cells[schema.count_column(name)] if name in self.streams else len(cells[name])
            length = length if length <= _EXACT_LENGTHS else round(length, -3)
            histogram[length] = histogram.get(length, 0) + 1
        self.num_rows += 1
        self._num_bytes += sum(len(cells[name]) for name in (schema.TITLE, schema.ASR, *self.streams))
        if len(self._columns[schema.ID]) >= _BATCH_ROWS or self._num_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._columns[schema.ID]:
            arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
            self._stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._columns = {name: [] for name in self._schema.names}
        self._num_bytes = 0

    def _abandon(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):
            self._file.close()
        self._columns = {name: [] for name in self._schema.names}
        # A full disk comes back from here as a UserError; any other error goes on as it is.
        self._atomic.__exit__(type(error), error, error.__traceback__)


class _HashingFile:
    """A binary file to write that knows the digest of what was written."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by the writer)
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


def write_manifest(
    folder: str | Path,
    shards: Sequence[ShardInfo],
    streams: Mapping[str, StreamInfo],
    *,
    has_tags: bool,
    command: str = "",
    counts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Check that no id stands twice in the shards, then write `manifest.json`.

    Comes last: it makes the folder a data set.

    Args:
        folder: Where the shards are.
        shards: `writer.info` of each shard, in order.
        streams: Width and extractor of each stream.
        has_tags: Whether the source knows tags at all (a test set does not).
        command: The command line that made the data, for `created_by`.
        counts: Further counts to note beside the lengths that the writers collected.

    Raises:
        UserError: A duplicate id (names both records), or shards of other streams.
    """
    folder = Path(folder)
    check_stream_names(streams, folder / schema.MANIFEST_FILE)
    check_unique_ids([(shard.file, folder / shard.file) for shard in shards])
    manifest = Manifest(
        num_videos=sum(shard.num_rows for shard in shards),
        streams=dict(streams),
        has_tags=has_tags,
        shards=tuple(shards),
        counts=summarise_stats([shard.stats for shard in shards]) | dict(counts or {}),
        created_by={"vidsim": _version(), "command": command},
    )
    write_json(folder / schema.MANIFEST_FILE, manifest.to_json())
    return manifest


def check_unique_ids(shards: Sequence[tuple[str, Path]]) -> None:
    """Refuse an id that stands twice, anywhere in the shards given as (name for messages, file).

    Raises:
        UserError: Names the id and both records.
    """
    chunks: list[pa.Array] = []
    owners: list[tuple[str, int]] = []
    for name, path in shards:
        num_rows = 0
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                chunks.append(batch.column(schema.ID))
                owners.append((name, num_rows))
                num_rows += len(batch)
    ids = pa.chunked_array(chunks, pa.string())
    twice = repeated(ids)
    if not twice:
        return
    places = []
    for chunk, (name, start) in zip(chunks, owners, strict=True):
        inside = pc.indices_nonzero(pc.equal(chunk, twice[0])).to_pylist()
        places += [(name, start + row) for row in inside]
    (first_file, first_row), (second_file, second_row) = places[:2]
    both = f"row {first_row} of {first_file} and row {second_row} of {second_file}"
    raise UserError(
        f"the id {twice[0]!r} stands twice: {both}",
        file=shards[0][1].parent,
        field=schema.ID,
        fix="give every video its own id, or convert the sources into two data sets",
    )


def summarise_stats(stats: Iterable[Mapping[str, Mapping[int, int]]]) -> dict[str, Any]:
    """Merge length histograms; for each field mean, quantiles, maximum and the rows of length zero."""
    merged: dict[str, Histogram] = {}
    for histograms in stats:
        for name, histogram in histograms.items():
            target = merged.setdefault(name, {})
            for length, rows in histogram.items():
                target[length] = target.get(length, 0) + rows
    return {name: summarise_histogram(histogram) for name, histogram in merged.items() if histogram}


def summarise_histogram(histogram: Mapping[int, int]) -> dict[str, float | int]:
    """Mean, p50, p75, p99 (nearest rank), max and `num_empty` of lengths given as length -> rows."""
    lengths = np.array(sorted(histogram), dtype=np.int64)
    rows = np.array([histogram[length] for length in lengths.tolist()], dtype=np.int64)
    cumulated = rows.cumsum()
    total = int(cumulated[-1])

    def quantile(q: float) -> int:
        return int(lengths[np.searchsorted(cumulated, int(np.ceil(q * total)))])

    return {
        "mean": round(float((lengths * rows).sum() / total), 3),
        "p50": quantile(0.5),
        "p75": quantile(0.75),
        "p99": quantile(0.99),
        "max": int(lengths[-1]),
        "num_empty": histogram.get(0, 0),
    }


def _version() -> str:
    try:
        return version("vidsim")
    except PackageNotFoundError:
        return "unknown"
