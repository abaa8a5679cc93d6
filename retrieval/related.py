"""`vidsim related`: the most similar videos of every video, as one table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, require_new
from vidsim.common.progress import progress
from vidsim.data.embeddings import read_embeddings
from vidsim.data.schema import ID
from vidsim.retrieval.exact import ExactIndex
from vidsim.retrieval.index import VectorIndex
from vidsim.retrieval.index_files import is_index
from vidsim.retrieval.qdrant import is_address
from vidsim.retrieval.vectors import require_cosine

RELATED_SCHEMA: Final = pa.schema(
    [(ID, pa.string()), ("rank", pa.int32()), ("related", pa.string()), ("score", pa.float32())]
)
_BLOCK: Final = 1024


def related_tables(searched: ExactIndex | VectorIndex, k: int) -> Iterator[pa.Table]:
    """For blocks of videos, the k most similar others of each: columns id, rank from 1, related, score.

    Raises:
        UserError: k < 1.
    """
    ids = pa.chunked_array([pa.array(searched.ids, pa.string())]) if isinstance(searched, ExactIndex) else searched.ids
    for start in range(0, len(searched), _BLOCK):
        own = np.arange(start, min(start + _BLOCK, len(searched)))
        if isinstance(searched, ExactIndex):
            rows, scores = searched.search(searched.vectors[own], k, exclude=own.tolist())
        else:
            found = searched.search(searched.vectors_of(own), k, exclude=own[:, None].tolist())
            rows, scores = found.rows, found.scores
        there = rows >= 0
        ranks = np.broadcast_to(np.arange(1, rows.shape[1] + 1, dtype=np.int32), rows.shape)
        queries = np.broadcast_to(own[:, None], rows.shape)
        columns = [ids.take(pa.array(queries[there])), ranks[there], ids.take(pa.array(rows[there])), scores[there]]
        yield pa.table(columns, schema=RELATED_SCHEMA)


def write_related(source: str | Path, out: str | Path, k: int, *, overwrite: bool = False) -> tuple[int, int]:
    """Write the k most similar others of every video of embeddings or of an index to a Parquet file.

    Returns:
        The number of rows, k for each video if there are as many others, and the number of videos.

    Raises:
        UserError: Nothing to read there, k < 1, `out` does not end in .parquet or is there already (and `overwrite`
            is not set), or the disk is full.
    """
    if Path(out).suffix != ".parquet":
        raise UserError("must end in .parquet", file=out, field="--out")
    require_new(out, overwrite=overwrite)
    if k < 1:
        raise UserError(f"must be at least 1, not {k}", field="-k")
    if is_address(source):
        fix = "make an index in a folder of the same embeddings"
        raise UserError("a collection of a server is not gone through as a whole", file=source, fix=fix)
    searched: ExactIndex | VectorIndex
    if is_index(source):
        searched = VectorIndex.load(source, mmap=True)
    else:
        embeddings = require_cosine(read_embeddings(source))
        searched = ExactIndex(embeddings.ids, embeddings.vectors)
    blocks = progress(related_tables(searched, k), total=-(-len(searched) // _BLOCK), desc="related", unit="blocks")
    num_rows = 0
    with atomic_path(out) as path, pq.ParquetWriter(path, RELATED_SCHEMA) as writer:
        for table in blocks:
            writer.write_table(table)
            num_rows += table.num_rows
    return num_rows, len(searched)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim related",
        description="Write the most similar videos of every video: a Parquet table with the columns id, rank, "
        "related and score (cosine). A video is not related to itself.",
        epilog="example: vidsim related index/fused --out related.parquet -k 20",
    )
    parser.add_argument("source", help="embeddings folder or file, or an index folder (faster)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the table, FILE.parquet")
    parser.add_argument("-k", type=int, default=20, help="how many for each video (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the table and say how long it is."""
    args = _parser().parse_args(argv)
    num_rows, num_videos = write_related(args.source, args.out, args.k, overwrite=args.overwrite)
    print(f"{args.out}: {num_rows:,} rows")
    if args.k > num_videos - 1:
        print(f"each of {num_videos:,} videos has {num_videos - 1:,} others, not {args.k:,}")
    return 0
