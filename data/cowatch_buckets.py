"""Rows sorted into files on the disk by the hash of a column, so that what belongs together is read together."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidsim.data.cowatch_graph import hash_of

_SEED = 2**32  # of the buckets, apart from any seed of a split


class Buckets:
    """Arrow stream files, one a bucket, that rows are sorted into by the hash of a column of text."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        """Name the files."""
        self.paths = [folder / f"{name}-{number:05d}.arrow" for number in range(count)]
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._open = ExitStack()

    def __enter__(self) -> Buckets:
        """Nothing is opened before it is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened."""
        self._open.close()

    def write(self, table: pa.Table, column: str) -> None:
        """Append each row to the bucket of its key, in order."""
        if not len(table):
            return
        encoded = table[column].combine_chunks().dictionary_encode()
        of_value = [hash_of(value, _SEED) % len(self.paths) for value in encoded.dictionary.to_pylist()]
        bucket = np.array(of_value, dtype=np.int64)[encoded.indices.to_numpy()]
        for number in np.unique(bucket).tolist():
            if number not in self._writers:
                self._writers[number] = self._open.enter_context(pa.ipc.new_stream(self.paths[number], table.schema))
            self._writers[number].write_table(table.filter(pa.array(bucket == number)))


def read_bucket(folder: Path, name: str, number: int) -> pa.Table | None:
    """A bucket's rows, None where it has none; the file is removed."""
    path = folder / f"{name}-{number:05d}.arrow"
    if not path.exists():
        return None
    with pa.ipc.open_stream(path) as reader:
        table = reader.read_all()
    path.unlink()
    return table
