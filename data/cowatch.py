"""`vidsim cowatch`: from watch sessions to a weighted graph of videos watched one after another.

Any number of rows fits: watches are sorted into buckets by user on the disk, each bucket is ordered by time by itself,
and the pairs it yields are sorted into buckets by video and counted there. What memory holds is one bucket, and the
ids of the videos (Lee et al. 2018, §3.2: edges between consecutive watches, weak ones dropped).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_folder, require_new, sha256_file, write_json
from vidsim.common.progress import progress
from vidsim.data.cowatch_buckets import Buckets, read_bucket
from vidsim.data.cowatch_graph import (
    EDGES_FILE,
    FORMAT_VERSION,
    INDEX_FILE,
    PARTS,
    TRAIN,
    VIDEOS_FILE,
    parts_of,
)
from vidsim.data.cowatch_links import CowatchConfig, link
from vidsim.data.cowatch_sessions import KEY, TIME, VIDEO, SessionColumns, estimated_rows, read_sessions
from vidsim.data.embeddings import read_embeddings, shown
from vidsim.data.ids import read_ids

ROWS_PER_BUCKET = 2_000_000
_MAX_BUCKETS = 512  # one open file each
_FIRST, _SECOND, _WEIGHT = "video1", "video2", "weight"


def build_graph(
    sources: Sequence[Path],
    out: Path,
    columns: SessionColumns,
    config: CowatchConfig,
    *,
    known: Sequence[str] | None = None,
    drop_unknown: bool = False,
    rows_per_bucket: int = ROWS_PER_BUCKET,
) -> dict[str, Any]:
    """Write a graph folder, whole or not at all.

    Args:
        sources: Files of watches.
        out: Folder that does not exist yet, or is empty.
        columns: Names of the columns.
        config: Sessions, threshold, split.
        known: Ids of videos that have features; None: not checked.
        drop_unknown: Leave other videos out (and count them) instead of refusing them.
        rows_per_bucket: How many watches are in memory at once, about.

    Returns:
        The manifest.

    Raises:
        UserError: Bad input, a video without features, no edge left; names what and where.
    """
    config.validate()
    require_new(out)
    num_rows = sum(estimated_rows(source) for source in sources if source.is_file())
    num_buckets = min(max(-(-num_rows // rows_per_bucket), 1), _MAX_BUCKETS)
    # Of sets, most are much smaller than the largest allowed.
    pairs_of_a_row = config.window if columns.time is not None else -(-config.max_session // 10)
    num_pair_buckets = min(num_buckets * pairs_of_a_row, _MAX_BUCKETS) if num_buckets > 1 else 1
    with atomic_folder(out) as result:
        buckets = result / "buckets"
        buckets.mkdir()
        counts = _bucket_watches(sources, columns, buckets, num_buckets, _Known(known, drop_unknown))
        has_time = columns.time is not None
        counts |= _bucket_pairs(buckets, num_buckets, num_pair_buckets, has_time, config, rows_per_bucket)
        counts |= _write_edges(buckets, result, num_pair_buckets, config)
        shutil.rmtree(buckets)
        if not counts["edges"]:
            why = f"no pair of videos was watched together with a weight of {config.min_weight:g} or more"
            fix = "lower --min_weight, or widen --window or --gap"
            raise UserError(f"{why} ({counts['pairs']:,} pairs in all)", file=sources[0], fix=fix)
        manifest = {
            "format_version": FORMAT_VERSION,
            "sources": [{"file": source.name, "bytes": source.stat().st_size} for source in sources],
            "columns": vars(columns),
            "settings": vars(config),
            "split": "eval, validation, train by the first 64 bits of blake2b(id, salt=seed) as a share of 2^64",
            "counts": counts,
            "files": {name: {"sha256": sha256_file(result / name)} for name in (EDGES_FILE, VIDEOS_FILE)},
        }
        write_json(result / INDEX_FILE, manifest)
    return manifest


class _Known:
    """Ids that have features, and what is not among them."""

    def __init__(self, ids: Sequence[str] | None, drop: bool) -> None:
        self.ids = None if ids is None else pa.array(ids, pa.string())
        self.drop = drop
        self.unknown: set[str] = set()
        self.num_dropped = 0

    def filter(self, table: pa.Table) -> pa.Table:
        """The rows of known videos; what is unknown is remembered."""
        if self.ids is None:
            return table
        there = pc.is_in(table[VIDEO], value_set=self.ids)
        self.unknown.update(pc.unique(table[VIDEO].filter(pc.invert(there))).to_pylist())
        kept = table.filter(there)
        self.num_dropped += len(table) - len(kept)
        return kept

    def check(self, source: Path) -> None:
        """Refuse a source with unknown videos, unless they may be dropped."""
        if self.unknown and not self.drop:
            what = f"{len(self.unknown):,} watched videos have no features: {shown(sorted(self.unknown))}"
            raise UserError(what, file=source, fix="extract their features, or leave them out with --drop_unknown")


def _bucket_watches(
    sources: Sequence[Path], columns: SessionColumns, folder: Path, num_buckets: int, known: _Known
) -> dict[str, int]:
    """Sort watches into files by user."""
    read = kept = 0
    with Buckets(folder, "watches", num_buckets) as buckets:
        for number, source in enumerate(sources):
            for table, rows in progress(read_sessions(source, columns), desc=f"reading {source.name}", unit="blocks"):
                read += rows
                table = known.filter(table)
                kept += len(table)
                if known.drop or not known.unknown:
                    buckets.write(table, KEY)
            known.check(sources[number])
    if not kept:
        left = "no watch is left after the rating threshold and the check for features" if read else "holds no watches"
        fix = "lower --min_rating, or check that --features has the ids of --video" if read else None
        raise UserError(left, file=sources[0], fix=fix)
    return {"rows": read, "watches": kept, "unknown_videos": len(known.unknown), "unknown_watches": known.num_dropped}


def _bucket_pairs(
    folder: Path, num_buckets: int, num_pair_buckets: int, has_time: bool, config: CowatchConfig, pairs_at_once: int
) -> dict[str, int]:
    """Pairs of videos watched one after another, counted among some users at a time, sorted by video."""
    sessions = users = 0
    window = config.window if has_time else config.max_session
    with Buckets(folder, "pairs", num_pair_buckets) as buckets:
        for number in progress(range(num_buckets), desc="linking sessions", unit="buckets"):
            table = read_bucket(folder, "watches", number)
            if table is None:
                continue
            keys = table[KEY].combine_chunks().dictionary_encode()
            videos = table[VIDEO].combine_chunks().dictionary_encode()
            key = keys.indices.to_numpy().astype(np.int64)
            order = np.argsort(key, kind="stable")
            key, video = key[order], videos.indices.to_numpy().astype(np.int64)[order]
            time = table[TIME].to_numpy()[order] if has_time else None
            users += len(keys.dictionary)
            # Whole users, as many as make about so many pairs.
            last_rows = np.cumsum(np.bincount(key))
            ends = last_rows[np.flatnonzero(np.diff(last_rows * window // pairs_at_once, append=-1))]
            for start, end in pairwise([0, *ends.tolist()]):
                part = slice(start, end)
                pairs, weights, found = link(key[part], video[part], None if time is None else time[part], config)
                sessions += found
                first, second = (videos.dictionary.take(pa.array(side)) for side in pairs)
                swap = pc.less(second, first)
                columns = [pc.if_else(swap, second, first), pc.if_else(swap, first, second), pa.array(weights)]
                buckets.write(pa.table(columns, names=[_FIRST, _SECOND, _WEIGHT]), _FIRST)
    return {"users_or_sessions": users, "sessions": sessions}


def _write_edges(folder: Path, result: Path, num_buckets: int, config: CowatchConfig) -> dict[str, int]:
    """Add up the pairs of each bucket, keep what is heavy enough, and write edges and videos."""
    schema = pa.schema([(_FIRST, pa.string()), (_SECOND, pa.string()), (_WEIGHT, pa.float64())])
    counts = {"pairs": 0, "edges": 0} | {f"{name}_edges": 0 for name in PARTS}
    degrees: dict[str, int] = {}
    part: dict[str, int] = {}
    with pq.ParquetWriter(result / EDGES_FILE, schema) as writer:
        for number in progress(range(num_buckets), desc="counting edges", unit="buckets"):
            table = read_bucket(folder, "pairs", number)
            if table is None:
                continue
            # In one thread, and rounded: sums shall not depend on the order of their parts.
            table = table.group_by([_FIRST, _SECOND], use_threads=False).aggregate([(_WEIGHT, "sum")])
            weights = pc.round(table[f"{_WEIGHT}_sum"], ndigits=9)
            table = pa.table([table[_FIRST], table[_SECOND], weights], schema=schema)
            counts["pairs"] += len(table)
            table = table.filter(pc.greater_equal(table[_WEIGHT], config.min_weight))
            table = table.sort_by([(_FIRST, "ascending"), (_SECOND, "ascending")])
            ends = [table[name].to_pylist() for name in (_FIRST, _SECOND)]
            new = list(dict.fromkeys(id for column in ends for id in column if id not in part))
            found = parts_of(new, config.eval_fraction, config.validation_fraction, config.seed)
            part.update(zip(new, found.tolist(), strict=True))
            for id in (id for column in ends for id in column):
                degrees[id] = degrees.get(id, 0) + 1
            writer.write_table(table)
            counts["edges"] += len(table)
            for sides in ({part[one], part[other]} for one, other in zip(*ends, strict=True)):
                if TRAIN in sides:  # the others serve nothing
                    counts[f"{PARTS[max(sides)]}_edges"] += 1
    ids = sorted(degrees)
    videos = {
        "id": pa.array(ids, pa.string()),
        "part": pa.array([PARTS[part[id]] for id in ids], pa.string()),
        "num_neighbours": pa.array([degrees[id] for id in ids], pa.int64()),
    }
    pq.write_table(pa.table(videos), result / VIDEOS_FILE)
    of_part = [part[id] for id in ids]
    return (
        counts | {"videos": len(ids)} | {f"{name}_videos": of_part.count(number) for number, name in enumerate(PARTS)}
    )


def feature_ids(source: Path) -> list[str]:
    """Ids of the videos that have features.

    Args:
        source: Embeddings (folder or `.parquet`), a `.npy` array whose row numbers are the ids, a data set folder, or
            a text file of ids.
    """
    if source.suffix == ".npy":
        try:
            return [str(row) for row in range(len(np.load(source, mmap_mode="r", allow_pickle=False)))]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"is not a readable array ({error})", file=source) from None
    if source.suffix == ".parquet" or (source / "embeddings.json").is_file():
        return read_embeddings(source).ids
    return read_ids(source)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim cowatch",
        description="Make the graph of videos watched one after another, its videos split into train, validation "
        "and eval.",
        epilog="example: vidsim cowatch watches.parquet --out data/cowatch --features runs/emb; ratings: "
        "vidsim cowatch ratings.csv --user userId --video movieId --time timestamp --rating rating --min_rating 4 "
        "--out data/cowatch; a sparse matrix users x videos: vidsim cowatch train.npz --unordered --out data/cowatch",
    )
    parser.add_argument("sessions", type=Path, nargs="+", help="watches: Parquet, CSV, TSV or npz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    names = SessionColumns()
    parser.add_argument("--user", default=names.user, help="column of the user (default %(default)s)")
    parser.add_argument("--video", default=names.video, help="column of the video (default %(default)s)")
    parser.add_argument("--time", default=names.time, help="column of the time, in seconds (default %(default)s)")
    parser.add_argument("--session", help="column that divides a user's watches into sessions")
    parser.add_argument("--rating", help="column of the rating")
    parser.add_argument("--min_rating", type=float, help="leave out rows rated lower")
    parser.add_argument("--unordered", action="store_true", help="there are no times: link all videos of a session")
    defaults = CowatchConfig()
    parser.add_argument("--gap", type=float, default=defaults.gap, help="pause that ends a session (%(default)s s)")
    parser.add_argument("--no_gap", action="store_true", help="no pause ends a session")
    parser.add_argument("--window", type=int, default=defaults.window, help="places apart (default %(default)s)")
    parser.add_argument("--max_session", type=int, default=defaults.max_session, help="with --unordered (%(default)s)")
    parser.add_argument("--min_weight", type=float, default=defaults.min_weight, help="keep edges of (%(default)s)")
    parser.add_argument(
        "--weighting",
        choices=("count", "session"),
        default=defaults.weighting,
        help="a link weighs 1, or 1 / (watches of its session - 1) (default %(default)s)",
    )
    parser.add_argument("--eval_fraction", type=float, default=defaults.eval_fraction, help="default %(default)s")
    parser.add_argument("--validation_fraction", type=float, default=defaults.validation_fraction, help="%(default)s")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the split (default %(default)s)")
    parser.add_argument("--features", type=Path, help="embeddings, .npy, data set or list of ids that must hold them")
    parser.add_argument("--drop_unknown", action="store_true", help="leave out videos without features")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`vidsim cowatch`."""
    args = _parser().parse_args(argv)
    if (args.rating is None) != (args.min_rating is None):
        raise UserError("--rating and --min_rating go together", field="--min_rating", fix="give both or none")
    if args.drop_unknown and args.features is None:
        raise UserError("says nothing without --features", field="--drop_unknown")
    columns = SessionColumns(
        user=args.user,
        video=args.video,
        time=None if args.unordered else args.time,
        session=args.session,
        rating=args.rating,
        min_rating=args.min_rating,
    )
    config = CowatchConfig(
        gap=None if args.no_gap else args.gap,
        **{name: getattr(args, name) for name in ("window", "max_session", "weighting", "min_weight", "seed")},
        **{name: getattr(args, name) for name in ("eval_fraction", "validation_fraction")},
    )
    known = feature_ids(args.features) if args.features is not None else None
    counts = build_graph(args.sessions, args.out, columns, config, known=known, drop_unknown=args.drop_unknown)[
        "counts"
    ]
    print(f"{counts['watches']:,} of {counts['rows']:,} rows kept, {counts['sessions']:,} sessions")
    if counts["unknown_videos"]:
        print(f"left out: {counts['unknown_videos']:,} videos without features ({counts['unknown_watches']:,} watches)")
    print(
        f"{counts['pairs']:,} pairs, {counts['edges']:,} edges of weight {config.min_weight:g} or more: "
        f"{counts['train_edges']:,} within train, {counts['validation_edges']:,} to validation, "
        f"{counts['eval_edges']:,} to eval"
    )
    print(f"{counts['videos']:,} videos: " + ", ".join(f"{counts[f'{name}_videos']:,} {name}" for name in PARTS))
    print(f"wrote {args.out}")
    return 0
