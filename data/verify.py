"""Re-check a converted folder: every byte against its digest, every row, ids, pairs and tags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file
from vidsim.common.progress import progress
from vidsim.data import schema
from vidsim.data.arrow import map_shard, open_videos
from vidsim.data.manifest import Manifest, ShardInfo, read_manifest
from vidsim.data.pairs import read_pairs
from vidsim.data.rows import first_non_finite
from vidsim.data.shards import check_unique_ids
from vidsim.data.tags import TagVocabulary

PAIRS_FILE = "pairs.tsv"
TAGS_FILE = "tags.txt"
_CONTROL = r"[\x00-\x1f\x7f]"
_SHOWN_PER_SHARD = 20
_MEND = "convert the data again"


def find_data_sets(folder: str | Path) -> list[Path]:
    """The folder itself, if it is a data set, and all data sets below it, by name, but not in hidden folders.

    Raises:
        UserError: There is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder", file=folder, fix="name a folder that `vidsim convert` wrote")
    found = [path.parent for path in sorted(folder.rglob(schema.MANIFEST_FILE)) if path.is_file()]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise UserError(
            f"holds no data set: no {schema.MANIFEST_FILE} in it or below",
            file=folder,
            fix="name a folder that `vidsim convert` wrote",
        )
    return found


def verify_folder(folder: str | Path, *, quiet: bool = False) -> Iterator[UserError | str]:
    """Check a converted folder; yields a line for what is well and a `UserError` for each problem."""
    folder = Path(folder)
    data_sets = find_data_sets(folder)
    broken = False
    for data_set in data_sets:
        for result in _verify_data_set(data_set, quiet):
            broken |= isinstance(result, UserError)
            yield result
    for path in sorted({*folder.rglob(TAGS_FILE)}):
        yield _attempt(lambda path=path: f"{path}: {TagVocabulary.from_file(path).size:,} tags")
    for path in sorted({*folder.rglob(PAIRS_FILE)}):
        if broken:
            yield f"{path}: ids not checked, since a data set is damaged"
            continue
        yield _attempt(lambda path=path: _verify_pairs(path, data_sets))


def _verify_pairs(path: Path, data_sets: list[Path]) -> str:
    """Every video of the pairs stands in some data set, wherever it is below the folder."""
    pairs = read_pairs(path)
    asked = pa.array(pairs.unique_ids(), pa.string())
    known = pa.array(np.zeros(len(asked), dtype=bool))
    for data_set in data_sets:
        known = pc.or_(known, pc.is_in(asked, value_set=open_videos(data_set).ids()))
    missing = asked.filter(pc.invert(known))
    if len(missing):
        first = ", ".join(missing[:5].to_pylist())
        raise UserError(
            f"{len(missing):,} of {len(asked):,} ids stand in no data set here, first {first}",
            file=path,
            fix="convert the videos of the pairs too",
        )
    return f"{path}: {len(pairs):,} pairs, all {len(asked):,} videos found"


def _attempt(check: object) -> UserError | str:
    """Run a check and hand back what it says, or what it raises."""
    assert callable(check)
    try:
        return str(check())
    except UserError as error:
        return error


def _verify_data_set(folder: Path, quiet: bool) -> Iterator[UserError | str]:
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        yield error
        return
    listed = {shard.file for shard in manifest.shards}
    for stray in sorted(path for path in folder.glob("data-*.arrow") if path.name not in listed):
        yield UserError("is in the folder, but the manifest does not list it", file=stray, fix="remove it, or " + _MEND)
    well = True
    for shard in progress(manifest.shards, desc=f"verify {folder.name}", unit="shard", enabled=not quiet):
        problems = list(_verify_shard(folder / shard.file, shard, manifest))
        well &= not problems
        yield from problems[:_SHOWN_PER_SHARD]
        if len(problems) > _SHOWN_PER_SHARD:
            yield UserError(f"{len(problems) - _SHOWN_PER_SHARD:,} more problems", file=folder / shard.file)
        if not problems:
            yield f"{folder / shard.file}: {shard.num_rows:,} rows"
    if not well:
        return
    try:
        check_unique_ids([(shard.file, folder / shard.file) for shard in manifest.shards])
    except UserError as error:
        yield error
        return
    yield f"{folder}: {manifest.num_videos:,} videos, all ids differ"


def _verify_shard(path: Path, shard: ShardInfo, manifest: Manifest) -> Iterator[UserError]:
    try:
        batches = map_shard(path, shard, {name: info.dim for name, info in manifest.streams.items()})
    except UserError as error:
        yield error
        return
    digest = sha256_file(path)
    if digest != shard.sha256:
        both = f"sha256 {digest[:12]}…, the manifest says {shard.sha256[:12]}…"
        yield UserError(
            f"the content differs from when it was written: {both}",
            file=path,
            fix="copy or convert the data again",
        )
    start = 0
    for batch in batches:
        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            yield UserError(
                f"rows {start} to {start + len(batch) - 1} are damaged ({error})",
                file=path,
                record=start,
                fix=_MEND,
            )
        else:
            for row, field, message in _verify_batch(batch, manifest):
                yield UserError(message, file=path, record=start + row, field=field, fix=_MEND)
        start += len(batch)


def _verify_batch(batch: pa.RecordBatch, manifest: Manifest) -> Iterator[tuple[int, str, str]]:
    """Problems of a structurally sound batch as (row in the batch, field, message)."""
    for field in batch.schema:
        column = batch.column(field.name)
        if field.name != schema.CATEGORY and column.null_count:
            for row in pc.indices_nonzero(pc.is_null(column)).to_pylist():
                yield row, field.name, "is null"
    for row in _not_plain(batch.column(schema.ID)):
        yield row, schema.ID, "is empty or holds control characters or outer blanks"
    tags = batch.column(schema.TAGS)
    flat, parents = tags.flatten(), pc.list_parent_indices(tags)
    bad = [*_not_plain(flat), *pc.indices_nonzero(pc.is_null(flat)).to_pylist()]
    for row in sorted({parents[position].as_py() for position in bad}):
        yield row, schema.TAGS, "a tag is null, empty or holds control characters or outer blanks"
    if not manifest.has_tags and len(flat):
        yield parents[0].as_py(), schema.TAGS, "has tags, but the manifest says has_tags: false"
    for name, info in manifest.streams.items():
        yield from _verify_stream(batch, name, info.dim)


def _not_plain(column: pa.Array) -> list[int]:
    """Positions of text that `is_plain_line` refuses; null is not text."""
    bad = pc.or_(
        pc.or_(pc.equal(pc.binary_length(column), 0), pc.match_substring_regex(column, _CONTROL)),
        pc.not_equal(pc.utf8_trim_whitespace(column), column),
    )
    positions: list[int] = pc.indices_nonzero(pc.fill_null(bad, False)).to_pylist()
    return positions


def _verify_stream(batch: pa.RecordBatch, name: str, dim: int) -> Iterator[tuple[int, str, str]]:
    column = batch.column(name)
    lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)
    num = pc.fill_null(batch.column(schema.count_column(name)), 0).to_numpy().astype(np.int64)
    wrong = np.flatnonzero((num < 0) | (lengths != num * dim * 2))
    for row in wrong.tolist():
        yield (
            row,
            name,
            f"{lengths[row]} bytes, {num[row]} vectors of {dim} float16 take {num[row] * dim * 2}",
        )
    good = np.setdiff1d(np.flatnonzero(lengths), wrong).tolist()
    for row in good:
        bad = first_non_finite(np.frombuffer(column[row].as_buffer(), np.uint16))
        if bad is not None:
            yield row, name, f"vector {bad // dim}, component {bad % dim} is not finite"


def main(argv: list[str] | None = None) -> int:
    """`vidsim verify`."""
    parser = ArgumentParser(
        prog="vidsim verify",
        description="Check a converted folder: digests, rows, ids, pairs, tags. Exit status 2 on a problem.",
        epilog="example: vidsim verify data/aiac",
    )
    parser.add_argument("folder", type=Path, help="a data set, or a folder that holds some")
    parser.add_argument("--quiet", action="store_true", help="print problems only")
    args = parser.parse_args(argv)
    problems: list[UserError] = []
    for result in verify_folder(args.folder, quiet=args.quiet):
        if isinstance(result, UserError):
            problems.append(result)
            print(f"PROBLEM {result}", flush=True)
        elif not args.quiet:
            print(f"OK {result}", flush=True)
    if problems:
        first = problems[0]
        more = f" (the first of {len(problems):,} problems, which stand above)" if len(problems) > 1 else ""
        raise UserError(
            first.message + more,
            file=first.file,
            record=first.record,
            field=first.field,
            fix=first.fix,
        )
    return 0
