"""`vidsim convert aiac`: the files of AIAC 2021 Track 1 to data sets, labelled pairs and a tag list.

    SRC/pointwise/pretrain_{0..19}.tfrecords      -> OUT/pointwise/   one shard for each file
    SRC/pairwise/pairwise.tfrecords               -> OUT/pairwise/
    SRC/pairwise/label.tsv                        -> OUT/pairs.tsv
    SRC/test_a/test_a.tfrecords, SRC/test_b/...   -> OUT/test_a/, OUT/test_b/
    SRC/tag_list.txt                              -> OUT/tags.txt

Nothing is dropped silently: a bad record stops the run, or goes to OUT/<part>/failures.jsonl and is counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, require_free_space
from vidsim.data import schema
from vidsim.data.arrow import open_videos
from vidsim.data.convert.aiac_ids import find_duplicates
from vidsim.data.convert.aiac_labels import read_labels, read_tag_list
from vidsim.data.convert.aiac_layout import LABELLED_PARTS, LABELS, TAG_LIST, Sources, find_sources
from vidsim.data.convert.aiac_shard import (
    NOTES_FOLDER,
    ShardJob,
    ShardResult,
    convert_shard,
    failure_line,
    finished_shard,
    stopped,
)
from vidsim.data.manifest import StreamInfo
from vidsim.data.pairs import write_pairs
from vidsim.data.shards import write_manifest
from vidsim.data.workers import run_jobs

FAILURES_FILE = "failures.jsonl"
PAIRS_FILE, TAGS_FILE = "pairs.tsv", "tags.txt"
_COMPETITION_DIM, _COMPETITION_EXTRACTOR = 1536, "efficientnet-b3"
_MAX_DEFAULT_PROCESSES = 8


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(kw_only=True)
class AiacConversion:
    """One run.

    Attributes:
        source: Folder of the competition's files.
        out: Folder to write the data sets into.
        frame_dim: Width of a frame feature.
        extractor: What made the features; None = not known.
        check_crc: Compare the checksums of every record.
        is_lenient: Write bad records and lines to `failures.jsonl` and go on, instead of stopping.
        num_processes: Files converted at the same time.
        tag_list: The tag list, if it is not in one of the usual places.
        command: Noted in the manifests.
        say: Takes each line of the summary.
    """

    source: Path
    out: Path
    frame_dim: int = _COMPETITION_DIM
    extractor: str | None = _COMPETITION_EXTRACTOR
    check_crc: bool = True
    is_lenient: bool = False
    num_processes: int = 1
    tag_list: Path | None = None
    command: str = ""
    say: Callable[[str], None] = _say

    def run(self) -> None:
        """Convert what is there, saying what came out of each part.

        Raises:
            UserError: Nothing to convert, a full disk, a part without a good record; without `is_lenient` also
                the first bad record or line. Shards finished by then are not converted again by the next run.
        """
        sources = find_sources(self.source, self.tag_list)
        self.say(sources.describe())
        with _no_empty_folders([self.out, *(self.out / part for part in sources.files)]):
            self._convert(sources)

    def _convert(self, sources: Sources) -> None:
        if sources.tag_list:  # small files first: an error in them shows at once
            self._convert_tag_list(sources.tag_list)
        for part, paths in sources.files.items():
            if paths:
                self._convert_part(part, paths, sources)
        if sources.labels and not sources.files["pairwise"]:
            self.say(f"{LABELS}: not converted, for there are no pairwise videos to check it against")

    def _convert_part(self, part: str, paths: Sequence[Path], sources: Sources) -> None:
        folder = self.out / part
        if (folder / schema.MANIFEST_FILE).exists() and not (folder / NOTES_FOLDER).exists():
            raise UserError("holds a data set of another origin", file=folder, fix="choose another --out")
        jobs = [
            ShardJob(
                source=path,
                name=f"{part}/{path.name}",
                shard=folder / f"data-{number:05d}.arrow",
                frame_dim=self.frame_dim,
                needs_tags=part in LABELLED_PARTS,
                check_crc=self.check_crc,
                is_lenient=self.is_lenient,
            )
            for number, path in enumerate(paths)
        ]
        _remove_leftovers(folder, jobs)
        results = self._convert_files(part, jobs)
        results = self._leave_out_duplicates(part, jobs, results)
        self._finish_part(part, jobs, results)
        if part == "pairwise" and sources.labels:
            self._convert_labels(sources.labels, jobs, sum(result.num_failed for result in results))

    def _convert_files(self, part: str, jobs: Sequence[ShardJob]) -> list[ShardResult]:
        """Convert the files that are not finished."""
        found = [finished_shard(job) for job in jobs]
        # Where one file has changed, the ids that others left out as its duplicates may be free again.
        if None in found:
            found = [None if result is None or result.num_excluded else result for result in found]
        todo = [job for job, result in zip(jobs, found, strict=True) if result is None]
        if todo:
            (self.out / part / schema.MANIFEST_FILE).unlink(missing_ok=True)
            require_free_space(self.out, sum(job.source.stat().st_size for job in todo))
        fresh = iter(self._run(part, todo))
        return [result or next(fresh) for result in found]

    def _run(self, part: str, jobs: Sequence[ShardJob]) -> list[ShardResult]:
        total = sum(job.source.stat().st_size for job in jobs)
        return run_jobs(convert_shard, jobs, self.num_processes, total=total, desc=part, unit="MiB", scale=2**20)

    def _leave_out_duplicates(
        self, part: str, jobs: Sequence[ShardJob], results: Sequence[ShardResult]
    ) -> list[ShardResult]:
        """Convert files again without the records whose id stands already in an earlier record of the part."""
        duplicates = find_duplicates(jobs, results)
        if duplicates and not self.is_lenient:
            index, records = min(duplicates.items())
            record, message = min(records.items())
            fix = "give every video its own id, or say --on_error quarantine to leave out the later one"
            raise UserError(message, file=jobs[index].source, record=record, field="id", fix=fix)
        todo = [dataclasses.replace(jobs[index], excluded=found) for index, found in duplicates.items()]
        fresh = dict(zip(duplicates, self._run(part, todo), strict=True))
        return [fresh.get(index, result) for index, result in enumerate(results)]

    def _finish_part(self, part: str, jobs: Sequence[ShardJob], results: Sequence[ShardResult]) -> None:
        """Write failures and manifest."""
        folder = self.out / part
        num_failed = sum(result.num_failed for result in results)
        num_rows = sum(result.info.num_rows for result in results)
        _write_failures(folder, jobs)
        if not num_rows:
            what = f"no record could be converted ({num_failed} failed)"
            raise UserError(what, file=self.source / part, fix="see why with --on_error stop")
        write_manifest(
            folder,
            [result.info for result in results],
            {schema.FRAMES: StreamInfo(dim=self.frame_dim, extractor=self.extractor)},
            has_tags=any(result.num_tagged for result in results),
            command=self.command,
            counts={"num_failed_records": num_failed},
        )
        line = f"{part}: {num_rows:,} videos in {len(results)} shard{'s' if len(results) > 1 else ''}"
        if num_kept := sum(result.kept for result in results):
            line += f" ({num_kept} finished earlier and kept)"
        if num_failed:
            line += f"; records left out: {num_failed:,}, see {folder / FAILURES_FILE}"
        self.say(line)
        if ignored := sorted({name for result in results for name in result.ignored}):
            self.say(f"{part}: features that the format does not have, not read: {', '.join(ignored)}")

    def _convert_labels(self, path: Path, jobs: Sequence[ShardJob], num_failed: int) -> None:
        """Check `label.tsv` against the pairwise videos and write the pairs."""
        folder = self.out / "pairwise"
        hint = f" ({num_failed:,} records were left out there)" if num_failed else ""
        failures: list[str] = []
        on_bad = self._on_bad_line(LABELS, failures)
        pairs = read_labels(path, open_videos(folder).ids(), on_bad, hint=hint)
        _write_failures(folder, jobs, failures)
        target = self.out / PAIRS_FILE
        if len(pairs):
            write_pairs(target, pairs)
        else:
            target.unlink(missing_ok=True)
        self._note_lines(f"{PAIRS_FILE}: {len(pairs):,} pairs", failures, folder)

    def _convert_tag_list(self, path: Path) -> None:
        """Check the tag list and write it."""
        failures: list[str] = []
        vocabulary = read_tag_list(path, self._on_bad_line(TAG_LIST, failures))
        _write_failures(self.out, [], failures)
        target = self.out / TAGS_FILE
        if vocabulary.size:
            vocabulary.save(target)
        else:
            target.unlink(missing_ok=True)
        self._note_lines(f"{TAGS_FILE}: {vocabulary.size:,} tags", failures, self.out)

    def _on_bad_line(self, name: str, failures: list[str]) -> Callable[[UserError], None]:
        def on_bad(error: UserError) -> None:
            if not self.is_lenient:
                raise stopped(error)
            failures.append(failure_line(error, name))

        return on_bad

    def _note_lines(self, line: str, failures: Sequence[str], folder: Path) -> None:
        if failures:
            line += f"; lines left out: {len(failures):,}, see {folder / FAILURES_FILE}"
        self.say(line)


@contextlib.contextmanager
def _no_empty_folders(folders: Sequence[Path]) -> Iterator[None]:
    """On an error, remove those of these folders (outer ones first) that were made since and hold nothing."""
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in reversed(new):
            for path in (folder / NOTES_FOLDER, folder):
                with contextlib.suppress(OSError):  # not there, or not empty
                    path.rmdir()
        raise


def _write_failures(folder: Path, jobs: Sequence[ShardJob], lines: Sequence[str] = ()) -> None:
    """Join what the files' conversions left out and these lines; no file where nothing was left out."""
    path = folder / FAILURES_FILE
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for job in jobs:
            with job.failures.open(encoding="utf-8") as part:
                shutil.copyfileobj(part, file)
        file.writelines(lines)
    if not path.stat().st_size:
        path.unlink()


def _remove_leftovers(folder: Path, jobs: Sequence[ShardJob]) -> None:
    """Remove half files of a run that was killed, and finished shards that have no source file any more."""
    stems = {job.shard.stem for job in jobs}
    notes = folder / NOTES_FOLDER
    for path in [*folder.glob(".*.tmp"), *notes.glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    for note in notes.glob("data-?????.json"):
        if note.stem not in stems:
            for path in (folder / f"{note.stem}.arrow", note.with_suffix(".failures.jsonl"), note):
                path.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Entry of `vidsim convert aiac`.

    Raises:
        UserError: Bad input or options.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    for name in ("frame_dim", "num_processes"):
        if getattr(options, name) < 1:
            raise UserError(f"is {getattr(options, name)}, must be at least 1", field=f"--{name}")
    extractor = options.extractor
    if extractor is None and options.frame_dim == _COMPETITION_DIM:
        extractor = _COMPETITION_EXTRACTOR
    conversion = AiacConversion(
        source=options.source,
        out=options.out,
        frame_dim=options.frame_dim,
        extractor=extractor,
        check_crc=not options.no_check_crc,
        is_lenient=options.on_error == "quarantine",
        num_processes=options.num_processes,
        tag_list=options.tag_list,
        command=f"vidsim convert aiac {shlex.join(argv)}",
    )
    conversion.run()
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim convert aiac",
        description="Convert the files of AIAC 2021 Track 1 (pointwise/, pairwise/ with label.tsv, test_a/, "
        "test_b/, tag_list.txt; any of them may be absent) to the data sets OUT/pointwise, OUT/pairwise, "
        "OUT/test_a, OUT/test_b, the labelled pairs OUT/pairs.tsv and the tag list OUT/tags.txt. Every record is "
        "checked. After an interruption the same command goes on: finished shards of unchanged files are kept.",
        epilog="example: vidsim convert aiac competition --out data/aiac --num_processes 8",
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="folder of the competition's files")
    add("--out", type=Path, required=True, help="folder to write the data sets into")
    processes = min(_MAX_DEFAULT_PROCESSES, len(os.sched_getaffinity(0)))
    add("--num_processes", type=int, default=processes, help="files at the same time (default %(default)s)")
    add(
        "--on_error",
        choices=("stop", "quarantine"),
        default="stop",
        help=f"at a bad record or line: stop, or note it in {FAILURES_FILE} and go on (default %(default)s)",
    )
    add("--no_check_crc", action="store_true", help="do not compare the checksums of the records")
    add("--frame_dim", type=int, default=_COMPETITION_DIM, help="width of a frame (default %(default)s)")
    add(
        "--extractor",
        help=f"what made the frames (default {_COMPETITION_EXTRACTOR} if {_COMPETITION_DIM} wide)",
    )
    add("--tag_list", type=Path, help="the tag list, if it is not SRC/tag_list.txt or nearby")
    return parser
