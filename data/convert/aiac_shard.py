"""One TFRecord file to one Arrow shard, with a note beside it by which a finished shard is known again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json, require_readable, sha256_file, write_json
from vidsim.common.progress import progress
from vidsim.data import schema
from vidsim.data.convert.aiac_record import FEATURES, to_row
from vidsim.data.manifest import ShardInfo
from vidsim.data.rows import FieldError
from vidsim.data.shards import ShardWriter
from vidsim.data.tf_example import parse_example
from vidsim.data.tfrecord import Record, read_records

NOTES_FOLDER = ".convert"
_REPORT_EVERY = 64  # records
_FIELDS = FEATURES | {schema.count_column(schema.FRAMES): FEATURES[schema.FRAMES]}


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What a worker needs to know to convert a file.

    Attributes:
        source: The TFRecord file.
        name: How failures and the manifest call it, `pointwise/pretrain_0.tfrecords`.
        shard: The Arrow file to write.
        frame_dim: Width of a frame feature.
        needs_tags: Whether every record must have tags and category.
        check_crc: Compare the checksums.
        is_lenient: Write bad records to a file of failures and go on, instead of stopping.
        excluded: Records to leave out, with the reason: ids that stand already elsewhere.
    """

    source: Path
    name: str
    shard: Path
    frame_dim: int
    needs_tags: bool
    check_crc: bool
    is_lenient: bool
    excluded: Mapping[int, str] = field(default_factory=dict)

    @property
    def note(self) -> Path:
        """The note about the finished shard."""
        return self.shard.parent / NOTES_FOLDER / f"{self.shard.stem}.json"

    @property
    def failures(self) -> Path:
        """One JSON line for each bad record."""
        return self.note.with_suffix(".failures.jsonl")

    def options(self) -> dict[str, Any]:
        """What the content of the shard depends on, besides the source."""
        return {
            "schema_version": schema.SCHEMA_VERSION,
            "frame_dim": self.frame_dim,
            "needs_tags": self.needs_tags,
            "check_crc": self.check_crc,
        }


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """A finished shard.

    Attributes:
        info: Its entry in the manifest.
        num_failed: Records left out.
        num_excluded: Those among them whose id stands already elsewhere.
        num_tagged: Records with the feature `tag_id`.
        ignored: Features that are no part of the format, with the number of records that have them.
        kept: Whether it was there already.
    """

    info: ShardInfo
    num_failed: int
    num_excluded: int
    num_tagged: int
    ignored: Mapping[str, int]
    kept: bool = False


def failure_line(error: UserError, name: str) -> str:
    """A line of `failures.jsonl`: file (as `name`), record, field, message, fix."""
    parts = {"file": name, "record": error.record, "field": error.field, "message": error.message}
    return json.dumps(parts | {"fix": error.fix}, ensure_ascii=True) + "\n"


def stopped(error: UserError) -> UserError:
    """A bad record or line as the error that ends the run, with the way around it."""
    error.fix = error.fix or "mend it or copy the file again, or leave what is bad out with --on_error quarantine"
    return error


def convert_shard(job: ShardJob, /, *, advance: Callable[[int], None] | None = None, show: bool = False) -> ShardResult:
    """Convert a file; its shard, failures and note appear whole or not at all, the note last.

    Args:
        job: What to convert.
        advance: Called now and then with the number of bytes read since.
        show: Show the progress.

    Raises:
        UserError: A bad record (not with `is_lenient`), a file without records, a full disk.
    """
    return _Conversion(job, advance).run(show)


class _Conversion:
    """The state of one file's conversion."""

    def __init__(self, job: ShardJob, advance: Callable[[int], None] | None) -> None:
        self._job = job
        self._advance = advance
        self._failures: IO[str] | None = None
        self._num_failed = self._num_tagged = self._num_excluded = 0
        self._ignored: dict[str, int] = {}

    def run(self, show: bool) -> ShardResult:
        job = self._job
        require_readable(job.source)
        status = job.source.stat()
        digest = sha256_file(job.source)
        streams = {schema.FRAMES: job.frame_dim}
        # Without its note the shard counts as not there; so the old note must go first.
        job.note.unlink(missing_ok=True)
        with (
            self._open_failures(),
            ShardWriter(job.shard, streams, source=job.name, source_sha256=digest) as writer,
        ):
            for record in progress(self._records(), desc=job.name, unit="records", enabled=show):
                self._convert(record, writer)
            if not writer.num_rows and not self._num_failed:
                self._fail(UserError("holds no records", file=job.source, fix="copy the file again"))
        result = ShardResult(
            info=writer.info,
            num_failed=self._num_failed,
            num_excluded=self._num_excluded,
            num_tagged=self._num_tagged,
            ignored=self._ignored,
        )
        _write_note(job, result, status.st_size, status.st_mtime_ns)
        return result

    def _records(self) -> Iterator[Record]:
        job = self._job
        on_bad = self._fail if job.is_lenient else None
        read_to = 0
        try:
            for record in read_records(job.source, check_crc=job.check_crc, on_bad=on_bad):
                yield record
                if self._advance and record.index % _REPORT_EVERY == 0:
                    self._advance(record.offset - read_to)
                    read_to = record.offset
        except UserError as error:
            lost = UserError(
                f"{error.message}; nothing from here to the end of the file could be read",
                file=error.file,
                record=error.record,
                fix=error.fix,
            )
            self._fail(lost if job.is_lenient else error)

    def _convert(self, record: Record, writer: ShardWriter) -> None:
        job = self._job
        place: dict[str, Any] = {"file": job.source, "record": record.index}
        try:
            if record.index in job.excluded:
                self._num_excluded += 1
                raise UserError(job.excluded[record.index], **place, field="id", fix="give every video its own id")
            features = parse_example(record.data, offset=record.data_offset, **place)
            try:
                row = to_row(features, frame_dim=job.frame_dim, needs_tags=job.needs_tags)
            except FieldError as error:
                raise UserError(error.message, **place, field=error.field, fix=error.fix) from None
            try:
                writer.write(row, record=record.index)
            except UserError as error:
                name = _FIELDS.get(error.field or "")
                raise UserError(error.message, **place, field=name, fix=error.fix) from None
        except UserError as error:
            self._fail(error)
            return
        self._num_tagged += "tag_id" in features
        for name in features.keys() - FEATURES.values():
            self._ignored[name] = self._ignored.get(name, 0) + 1

    def _fail(self, error: UserError) -> None:
        if not self._job.is_lenient or self._failures is None:
            raise stopped(error)
        self._failures.write(failure_line(error, self._job.name))
        self._num_failed += 1

    @contextlib.contextmanager
    def _open_failures(self) -> Iterator[None]:
        path = self._job.failures
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as self._failures:
            yield


def _write_note(job: ShardJob, result: ShardResult, size: int, mtime_ns: int) -> None:
    info = result.info
    content = dataclasses.asdict(result)
    stats = {name: {str(k): v for k, v in histogram.items()} for name, histogram in info.stats.items()}
    content |= {"info": info.to_json(), "stats": stats, "options": job.options(), "source": job.name}
    write_json(job.note, content | {"source_size": size, "source_mtime_ns": mtime_ns})


def finished_shard(job: ShardJob) -> ShardResult | None:
    """The result of an earlier run if the shard is whole and would come out the same, otherwise None."""
    try:
        note = read_json(job.note)
        entry = note["info"]
        info = ShardInfo(
            **entry,
            stats={name: {int(k): v for k, v in histogram.items()} for name, histogram in note["stats"].items()},
        )
        result = ShardResult(
            info=info,
            num_failed=note["num_failed"],
            num_excluded=note["num_excluded"],
            num_tagged=note["num_tagged"],
            ignored=note["ignored"],
            kept=True,
        )
        same = note["options"] == job.options() and note["source"] == job.name
        size, mtime_ns = note["source_size"], note["source_mtime_ns"]
        status, shard_size = job.source.stat(), job.shard.stat().st_size
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None  # no note, or one that another version wrote: convert again
    if not same or shard_size != info.num_bytes or status.st_size != size:
        return None
    if result.num_failed and (not job.is_lenient or not job.failures.exists()):
        return None
    if status.st_mtime_ns != mtime_ns and sha256_file(job.source) != info.source_sha256:
        return None
    return result
