"""Videos with features and tags: who has both, which tags are classes, and which videos are trained on.

Legend: V videos with features, N videos with tags, P (video, class) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError
from vidsim.common.progress import progress
from vidsim.data import schema
from vidsim.data.arrow import open_videos
from vidsim.data.convert.columns import CellError, ColumnMap
from vidsim.data.convert.rows import read_rows
from vidsim.data.cowatch_graph import EVAL, TRAIN, VALIDATION, Integers, parts_of
from vidsim.data.embeddings import positions, repeated, shown
from vidsim.data.rows import FieldError, check_row
from vidsim.data.tags import TagVocabulary

_CHUNK = 65_536
_TAGS = pa.list_(pa.string())


@dataclass(frozen=True, eq=False)
class TaggedVideos:
    """Tags as they were given.

    Attributes:
        ids: N distinct ids.
        tags: Arrow list<string> [N].
        name: Where they came from, for messages.
    """

    ids: list[str]
    tags: pa.ChunkedArray
    name: str


@dataclass(frozen=True, eq=False)
class Annotation:
    """Tags in the numbering of the features.

    Attributes:
        vocabulary: The tags that are classes, with their counts among the training videos.
        train: int64, videos to train on: they have tags, of a class or not.
        evaluated: `validation` and `test` to int64, held-out videos with a tag that is a class.
        classes: Arrow list<int64> [V], ascending, each class of a video once.
        lines: What was counted, for people.
    """

    vocabulary: TagVocabulary
    train: Integers
    evaluated: dict[str, Integers]
    classes: pa.ListArray
    lines: list[str]

    def pairs(self, videos: Integers) -> tuple[Integers, Integers]:
        """Positions in `videos` int64 [P], ascending, and the classes int64 [P] of each."""
        lists = self.classes.take(pa.array(videos))
        return pc.list_parent_indices(lists).to_numpy().astype(np.int64), lists.flatten().to_numpy().copy()


def tag_columns(id: str, tags: Sequence[str], separator: str) -> ColumnMap:
    """The columns of a table that hold ids and tags; no others are read."""
    return ColumnMap(
        id=id,
        title="",
        asr=(),
        tags=tuple(tags),
        category="",
        feature_id=id,
        optional=frozenset({""}),
        tag_separator=separator,
    )


def read_tags(source: str | Path, columns: ColumnMap) -> TaggedVideos:
    """Read tags from a data set folder or a table (JSONL, CSV, TSV, Parquet).

    Args:
        source: The folder or file.
        columns: Of a table, from `tag_columns`; a data set has its own.

    Raises:
        UserError: Nothing there, a bad row, a column that no row has, ids that occur twice.
    """
    source = Path(source)
    if source.is_dir():
        videos = open_videos(source)
        return TaggedVideos(videos.ids().to_pylist(), videos.column(schema.TAGS), str(source))
    ids: list[str] = []
    chunks: list[pa.Array] = []
    waiting: list[list[str]] = []
    for number, row in progress(read_rows(source), desc=f"reading {source.name}", unit="rows"):
        if isinstance(row, UserError):
            raise row
        try:
            video, _ = columns.convert(row)
            check_row(video, {})
        except CellError as error:
            raise error.at(source, number) from None
        except FieldError as error:
            raise UserError(error.message, file=source, record=number, field=error.field, fix=error.fix) from None
        ids.append(video[schema.ID])
        waiting.append(video[schema.TAGS])
        if len(waiting) == _CHUNK:
            chunks.append(pa.array(waiting, _TAGS))
            waiting = []
    columns.check_met(source)
    twice = repeated(ids)
    if twice:
        what = f"{len(twice):,} ids occur more than once: {shown(twice)}"
        raise UserError(what, file=source, field=columns.id, fix="keep one line for each id")
    return TaggedVideos(ids, pa.chunked_array([*chunks, pa.array(waiting, _TAGS)]), str(source))


def split_videos(
    ids: Sequence[str], test_fraction: float, validation_fraction: float, seed: int, test_ids: Sequence[str] | None
) -> npt.NDArray[np.int8]:
    """The part of each video, int8 [V]: `TRAIN`, `VALIDATION` or `EVAL`, which is the test.

    Args:
        ids: V ids.
        test_fraction: Share of the test, by a hash of the id; of no meaning with `test_ids`.
        validation_fraction: Share of the validation. A co-watch graph of the same shares and seed has the same parts.
        seed: Of the hash.
        test_ids: The test, instead of a share.
    """
    if test_ids is None:
        return parts_of(ids, test_fraction, validation_fraction, seed)
    part = parts_of(ids, 0.0, validation_fraction, seed)
    part[positions(ids, test_ids) >= 0] = EVAL
    return part


def annotate(
    feature_ids: Sequence[str],
    tagged: TaggedVideos,
    part: npt.NDArray[np.int8],
    *,
    min_count: int,
    max_tags: int | None,
) -> Annotation:
    """Bring features and tags together.

    Args:
        feature_ids: V ids of the features.
        tagged: Tags of any videos.
        part: int8 [V], from `split_videos`.
        min_count: A tag on fewer training videos is no class.
        max_tags: At most so many classes, the most frequent; None: no limit.

    Raises:
        UserError: No video is left to train or to validate on, no tag is frequent enough.
    """
    has_tags = pc.greater(pc.list_value_length(tagged.tags), 0).to_numpy().astype(bool)
    row_of = positions(feature_ids, tagged.ids)
    labelled = (row_of >= 0) & has_tags[row_of]
    train = np.flatnonzero(labelled & (part == TRAIN))
    if not len(train):
        what = f"of {len(feature_ids):,} videos with features {int(labelled.sum()):,} have tags, none to train on"
        raise UserError(what, file=tagged.name, fix="give tags and features the same ids, and hold out less")
    of_training = _once(tagged.tags.take(pa.array(row_of[train])))
    vocabulary = TagVocabulary.count(of_training, max_tags, min_count, place=tagged.name)
    classes = _encode(tagged, np.where(labelled, row_of, -1), vocabulary)
    known = pc.list_value_length(classes).to_numpy() > 0
    lines = _left_out(feature_ids, labelled, tagged.ids, has_tags)
    lines += _tag_lines(TagVocabulary.count(of_training, None, 1, place=tagged.name), vocabulary, min_count)
    lines.append(f"train: {len(train):,} videos, {int((~known[train]).sum()):,} of them without any of these tags")
    evaluated = {}
    for name, number in (("validation", VALIDATION), ("test", EVAL)):
        held_out = np.flatnonzero(labelled & (part == number))
        evaluated[name] = held_out[known[held_out]]
        without = len(held_out) - len(evaluated[name])
        lines.append(f"{name}: {len(evaluated[name]):,} videos; {without:,} without any of these tags are left out")
    if not len(evaluated["validation"]):
        raise UserError("no video is left to validate on", file=tagged.name, fix="raise validation_fraction")
    return Annotation(vocabulary, train, evaluated, classes, lines)


def _once(tags: pa.ChunkedArray) -> pa.ChunkedArray:
    """One list<string> for each video and tag: a video that repeats a tag counts once."""
    lists = tags.combine_chunks()
    pairs = pa.table({"video": pc.list_parent_indices(lists), schema.TAGS: lists.flatten()})
    found = pairs.group_by(pairs.column_names, use_threads=False).aggregate([])[schema.TAGS].combine_chunks()
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(range(len(found) + 1), pa.int32()), found)])


def _encode(tagged: TaggedVideos, row_of: Integers, vocabulary: TagVocabulary) -> pa.ListArray:
    """Classes of each video, whose tags stand in row `row_of`; none where that is -1."""
    videos = np.flatnonzero(row_of >= 0)
    lists = pa.concat_arrays([pa.array([], _TAGS), *tagged.tags.take(pa.array(row_of[videos])).chunks])
    owner = videos[pc.list_parent_indices(lists).to_numpy()]
    found = pc.index_in(lists.flatten(), value_set=pa.array(vocabulary.tags, pa.string()))
    number = found.fill_null(-1).to_numpy().astype(np.int64)
    owner, number = np.unique(np.stack([owner, number])[:, number >= 0], axis=1)
    ends = np.cumsum(np.bincount(owner, minlength=len(row_of)))
    return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), pa.array(number))


def _left_out(
    feature_ids: Sequence[str],
    labelled: npt.NDArray[np.bool_],
    tagged_ids: Sequence[str],
    has_tags: npt.NDArray[np.bool_],
) -> list[str]:
    lines = [f"videos: {int(labelled.sum()):,} with features and tags"]
    tagless = [feature_ids[i] for i in np.flatnonzero(~labelled).tolist()]
    featureless = np.flatnonzero(has_tags & (positions(tagged_ids, feature_ids) < 0))
    if tagless:
        lines.append(f"left out: {len(tagless):,} videos with features have no tags: {shown(tagless)}")
    if len(featureless):
        names = shown([tagged_ids[i] for i in featureless.tolist()])
        lines.append(f"left out: {len(featureless):,} videos with tags have no features: {names}")
    return lines


def _tag_lines(every: TagVocabulary, vocabulary: TagVocabulary, min_count: int) -> list[str]:
    """What the class list is, of all tags of the training videos."""
    uses, kept = sum(every.counts), sum(vocabulary.counts)
    rarer = f"{every.size - vocabulary.size:,} others are left out, with {uses - kept:,} of {uses:,} uses"
    return [f"tags: {vocabulary.size:,}, each on at least {min_count} training videos; {rarer}"]
