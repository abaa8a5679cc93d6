"""Ids that stand in several records of the files of one part."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vidsim.data import schema
from vidsim.data.convert.aiac_shard import ShardJob, ShardResult
from vidsim.data.embeddings import repeated


def find_duplicates(jobs: Sequence[ShardJob], results: Sequence[ShardResult]) -> dict[int, dict[int, str]]:
    """Job number -> record number -> message, for every record whose id stands in an earlier one.

    The ids are compared in Arrow's memory, as the shards hold them: about 30 bytes a video.
    """
    chunks: list[pa.Array] = []
    for job in jobs:
        with pa.memory_map(str(job.shard)) as file, pa.ipc.open_stream(file) as reader:
            chunks += [batch.column(schema.ID) for batch in reader]
    ids = pa.chunked_array(chunks, pa.string())
    if not repeated(ids):
        return {}
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first_rows = np.unique(codes, return_index=True)
    is_later = np.ones(len(codes), dtype=bool)
    is_later[first_rows] = False
    starts = np.cumsum([0, *(result.info.num_rows for result in results)])
    records: dict[int, npt.NDArray[np.int64]] = {}

    def place(row: int) -> tuple[int, int]:
        index = int(np.searchsorted(starts, row, side="right")) - 1
        if index not in records:
            records[index] = _records_of_rows(jobs[index], results[index].info.num_rows)
        return index, int(records[index][row - starts[index]])

    found: dict[int, dict[int, str]] = {}
    for row in np.flatnonzero(is_later).tolist():
        index, record = place(row)
        other, other_record = place(int(first_rows[codes[row]]))
        message = f"the id {ids[row]} stands already in record {other_record} of {jobs[other].name}"
        found.setdefault(index, {})[record] = message
    return found


def _records_of_rows(job: ShardJob, num_rows: int) -> npt.NDArray[np.int64]:
    """Record number of each row of a shard: all numbers but those that failed."""
    with job.failures.open(encoding="utf-8") as file:
        failed = [json.loads(line)["record"] for line in file]
    numbers = np.array([record for record in failed if record is not None], dtype=np.int64)
    return np.setdiff1d(np.arange(num_rows + len(numbers)), numbers)
