"""`vidsim convert table`: rows of JSONL, CSV, TSV or Parquet, with features or without, to a data set."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError, record_name
from vidsim.common.files import atomic_path, require_new, sha256_file
from vidsim.common.progress import progress
from vidsim.data import schema
from vidsim.data.convert.columns import CellError, ColumnMap
from vidsim.data.convert.features import FeatureSource, open_features, open_pictures
from vidsim.data.convert.rows import FORMATS, NumberedRow, read_rows
from vidsim.data.manifest import Manifest, ShardInfo, StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest

FAILURES_FILE = "failures.jsonl"
_EPILOG = """\
examples:
  vidsim convert table videos.jsonl --out data/mine --features features.npy
  vidsim convert table videos.csv --out data/mine --title name --tags keywords --tag_separator '|' \\
      --frames frames.zip --extractor efficientnet-lite0
  vidsim convert table videos.parquet --out data/text_only

features are one of
  --features DIR           DIR/ID.npy for each video, [n, D]
  --features stacked.npy   [N, D], with stacked.json beside it:
                           {"dim": D, "extractor": null, "offsets": {ID: [start, count]}}
  --features arrays.npz    one array for each ID
  --frames PATH            pictures ID/0001.png, or strips of square frames ID.png, in a folder or a zip file
"""


@dataclass(kw_only=True)
class TableConversion:
    """One run: what is read, what is written, what was counted.

    Attributes:
        rows: The table.
        out: The data set folder; must not exist, or be empty.
        columns: Which column is what.
        sources: Features of each stream; None = a stream of known width without features.
        dims: Width of each stream.
        kind: Format of the table; None goes by its suffix.
        is_lenient: Write rows that cannot be converted to `failures.jsonl` and go on, instead of stopping.
        allow_missing_features: Convert a row whose features are missing with zero frames.
        shard_rows: Rows in a shard.
        command: Noted in the manifest.
    """

    rows: Path
    out: Path
    columns: ColumnMap
    sources: Mapping[str, FeatureSource | None]
    dims: Mapping[str, int]
    kind: str | None = None
    is_lenient: bool = False
    allow_missing_features: bool = False
    shard_rows: int = 100_000
    command: str = ""
    num_failed: int = 0
    num_missing: dict[str, int] = field(default_factory=dict)
    _lines: dict[str, int] = field(default_factory=dict)
    _used: dict[str, set[str]] = field(default_factory=dict)

    def run(self) -> Manifest:
        """Convert.

        Raises:
            UserError: Bad input, `out` is taken, no row could be converted; nothing is left behind then.
        """
        require_new(self.out)
        numbered = read_rows(self.rows, self.kind)
        self.num_missing = dict.fromkeys(self.sources, 0)
        self._used = {name: set() for name in self.sources}
        digest = sha256_file(self.rows)
        self.out.mkdir(parents=True, exist_ok=True)
        with _removed_on_error(self.out), self._failures() as failures:
            shards = self._write_shards(progress(numbered, desc=self.rows.name, unit="rows"), failures, digest)
            if not shards and not self.num_failed:
                raise UserError("holds no rows", file=self.rows, fix="write one video on each row")
            self.columns.check_met(self.rows)
            if not shards:
                what = f"no row could be converted ({self.num_failed} failed)"
                raise UserError(what, file=self.rows, fix="see why with --on_error stop")
            streams = {name: StreamInfo(dim=dim, extractor=self._extractor(name)) for name, dim in self.dims.items()}
            return write_manifest(
                self.out,
                shards,
                streams,
                has_tags=self.columns.has_tags,
                command=self.command,
                counts=self._counts(),
            )

    def _write_shards(self, numbered: Iterator[NumberedRow], failures: IO[str], digest: str) -> list[ShardInfo]:
        shards: list[ShardInfo] = []
        pending = next(numbered, None)
        while pending is not None:
            path = self.out / f"data-{len(shards):05d}.arrow"
            with ShardWriter(path, self.dims, source=str(self.rows), source_sha256=digest) as writer:
                while pending is not None and writer.num_rows < self.shard_rows:
                    self._write_row(writer, *pending, failures)
                    pending = next(numbered, None)
            if writer.num_rows:
                shards.append(writer.info)
            else:
                path.unlink()
        return shards

    def _write_row(self, writer: ShardWriter, number: int, row: dict[str, Any] | UserError, failures: IO[str]) -> None:
        num_repeated_tags = self.columns.num_repeated_tags
        try:
            if isinstance(row, UserError):
                raise row
            video, feature_ids = self._convert(row, number)
            writer.write(video, record=number)
        except UserError as error:
            if not self.is_lenient:
                raise
            parts = {key: getattr(error, key) for key in ("file", "record", "field", "message", "fix")}
            failures.write(json.dumps({"row": number, **parts}, ensure_ascii=True) + "\n")
            self.num_failed += 1
            self.columns.num_repeated_tags = num_repeated_tags  # those of a row that is left out do not count
            return
        self._lines[video[schema.ID]] = number
        for name, source in self.sources.items():
            if name in feature_ids:
                self._used[name].add(feature_ids[name])
            elif source is not None:
                self.num_missing[name] += 1

    def _convert(self, row: dict[str, Any], number: int) -> tuple[dict[str, Any], dict[str, str]]:
        """The video row with its streams, and for each stream the id under which vectors were found."""
        try:
            video, feature_id = self.columns.convert(row)
        except CellError as error:
            raise error.at(self.rows, number) from None
        if (earlier := self._lines.get(video[schema.ID])) is not None:
            raise UserError(
                f"the id {video[schema.ID]!r} stands already in {record_name(earlier, self.rows)}",
                file=self.rows,
                record=number,
                field=self.columns.id,
                fix="give every row its own id",
            )
        found: dict[str, str] = {}
        for name, source in self.sources.items():
            vectors = source.read(feature_id) if source is not None else None
            if vectors is not None:
                found[name] = feature_id
            elif source is not None and not self.allow_missing_features:
                raise UserError(
                    f"there are no {name} features of {feature_id!r}",
                    file=self.rows,
                    record=number,
                    field=self.columns.feature_id,
                    fix="add them, or say --allow_missing_features to convert the row without",
                )
            video[name] = np.zeros((0, self.dims[name]), np.float16) if vectors is None else vectors
        return video, found

    def _extractor(self, stream: str) -> str | None:
        source = self.sources.get(stream)
        return source.extractor if source is not None else None

    def _counts(self) -> dict[str, Any]:
        unused = {
            name: len(source) - len(self._used[name]) for name, source in self.sources.items() if source is not None
        }
        return {
            "num_failed_rows": self.num_failed,
            "num_repeated_tags": self.columns.num_repeated_tags,
            "num_rows_without_features": dict(self.num_missing),
            "num_unused_features": unused,
        }

    @contextlib.contextmanager
    def _failures(self) -> Iterator[IO[str]]:
        """The file of failed rows, in place only if there are any."""
        path = self.out / FAILURES_FILE
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            yield file
        if not self.num_failed:
            path.unlink()


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    """Leave no half data set: remove what was written into `folder`, which was empty before."""
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def main(argv: list[str] | None = None) -> int:
    """Entry of `vidsim convert table`.

    Raises:
        UserError: Bad input or options.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    conversion = _conversion(options, f"vidsim convert table {shlex.join(argv)}")
    manifest = conversion.run()
    print(f"{manifest.num_videos:,} videos -> {options.out}")
    for name, info in manifest.streams.items():
        print(f"  stream {name}: {info.dim} wide, {info.extractor or 'extractor not noted'}")
        if missing := conversion.num_missing.get(name):
            print(f"  {missing:,} videos have no {name} features and are written with none")
        if unused := manifest.counts["num_unused_features"].get(name):
            print(f"  {unused:,} videos with {name} features stand in no row")
    if conversion.num_failed:
        print(f"  {conversion.num_failed:,} rows failed and are left out: {options.out}/{FAILURES_FILE}")
    if unread := conversion.columns.unread():
        print(f"  {unread}")
    return 0


def _conversion(options: argparse.Namespace, command: str) -> TableConversion:
    if options.shard_rows < 1:
        raise UserError(f"is {options.shard_rows}, must be at least 1", field="--shard_rows")
    sources, dims = _sources(options)
    return TableConversion(
        rows=options.rows,
        out=options.out,
        columns=_columns(options),
        sources=sources,
        dims=dims,
        kind=options.format,
        is_lenient=options.on_error == "quarantine",
        allow_missing_features=options.allow_missing_features,
        shard_rows=options.shard_rows,
        command=command,
    )


def _columns(options: argparse.Namespace) -> ColumnMap:
    mapped = (schema.TITLE, schema.ASR, schema.TAGS, schema.CATEGORY)
    if not options.tag_separator:
        raise UserError("must not be empty", field="--tag_separator")
    return ColumnMap(
        id=options.id,
        title=options.title or schema.TITLE,
        asr=tuple(options.asr or (schema.ASR,)),
        tags=tuple(options.tags or (schema.TAGS,)),
        category=options.category or schema.CATEGORY,
        feature_id=options.feature_id or options.id,
        optional=frozenset(name for name in mapped if getattr(options, name) is None),
        id_prefix=options.id_prefix,
        tag_separator=options.tag_separator,
    )


def _sources(options: argparse.Namespace) -> tuple[dict[str, FeatureSource | None], dict[str, int]]:
    """The source and width of each stream that the options ask for; none at all for text only."""
    if options.features and options.frames:
        raise UserError("--features and --frames exclude each other", field="--features")
    if options.feature_index and not options.features:
        raise UserError("goes with --features", field="--feature_index")
    sources: dict[str, FeatureSource | None] = {}
    if options.features:
        sources[schema.FRAMES] = open_features(
            options.features, index=options.feature_index, extractor=options.extractor
        )
    elif options.frames:
        if not options.extractor:
            raise UserError("is needed with --frames", field="--extractor", fix="say --extractor efficientnet-lite0")
        sources[schema.FRAMES] = open_pictures(
            options.frames,
            options.extractor,
            is_strip=options.frame_files == "strip",
            image_size=options.image_size,
            device=options.device,
        )
    for entry in options.stream:
        name, separator, path = entry.partition("=")
        if not separator or name in sources:
            raise UserError(f"{entry!r} is not NAME=PATH of a further stream", field="--stream")
        sources[name] = open_features(path)
    dims = {name: source.dim for name, source in sources.items() if source is not None}
    if options.frame_dim is not None:
        found = dims.setdefault(schema.FRAMES, options.frame_dim)
        sources.setdefault(schema.FRAMES, None)
        if found != options.frame_dim:
            raise UserError(f"is {options.frame_dim}, but the features are {found} wide", field="--frame_dim")
        if options.frame_dim < 1:
            raise UserError(f"is {options.frame_dim}, must be at least 1", field="--frame_dim")
    return sources, dims


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim convert table",
        description="Convert a table of videos (one a row) to a data set folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("rows", type=Path, metavar="ROWS", help="JSONL, CSV, TSV (unquoted) or Parquet file")
    add("--out", type=Path, required=True, help="data set folder to write; must not exist or be empty")
    add("--format", choices=FORMATS, help="format of ROWS (by default its suffix says)")
    columns = parser.add_argument_group("columns; lists are joined in text columns")
    columns.add_argument("--id", default=schema.ID, help="video id (default %(default)s)")
    columns.add_argument("--title", help="title (default: title where there is one)")
    columns.add_argument("--asr", nargs="+", metavar="COLUMN", help="speech or further text (default: asr)")
    columns.add_argument("--tags", nargs="+", metavar="COLUMN", help="tags: lists or separated text (default: tags)")
    columns.add_argument("--tag_separator", default=",", help="between tags in text (default ',')")
    columns.add_argument("--category", help="category, a whole number (default: category)")
    columns.add_argument("--feature_id", metavar="COLUMN", help="id that features and frames go by (default: the id)")
    columns.add_argument("--id_prefix", default="", help="put before every id, such as en-")
    features = parser.add_argument_group("features")
    features.add_argument("--features", type=Path, help="arrays of frame features")
    features.add_argument("--feature_index", type=Path, help="index of a stacked array (default: beside it)")
    features.add_argument("--frames", type=Path, help="frame pictures to extract features from")
    features.add_argument("--frame_files", choices=("strip", "picture"), default="strip", help="what a file ID.png is")
    features.add_argument("--extractor", help="efficientnet-lite0 or a checkpoint folder; a note with --features")
    features.add_argument("--image_size", type=int, help="side of the picture the extractor sees, in pixels")
    features.add_argument("--device", default="cpu", help="where the extractor runs (default cpu)")
    features.add_argument("--frame_dim", type=int, help="width of the frames stream (needed only without features)")
    features.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="further stream, such as audio=audio.npy",
    )
    features.add_argument(
        "--allow_missing_features", action="store_true", help="convert rows without features with zero frames"
    )
    add(
        "--on_error",
        choices=("stop", "quarantine"),
        default="stop",
        help=f"quarantine: to {FAILURES_FILE}, go on",
    )
    add("--shard_rows", type=int, default=100_000, help="rows in a shard (default %(default)s)")
    return parser
