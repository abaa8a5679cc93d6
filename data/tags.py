"""The tag vocabulary of video tag classification: which tags are predicted, and their class numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path
from vidsim.data import schema
from vidsim.data.arrow import Videos
from vidsim.data.rows import is_plain_line


@dataclass(frozen=True)
class TagVocabulary:
    """The tags that are classes, most frequent first; class number = position.

    Attributes:
        tags: Raw tags as text.
        counts: How often each occurs in the videos it was built from; empty where that is not known.
    """

    tags: tuple[str, ...]
    counts: tuple[int, ...] = ()
    _class_of: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the tags."""
        object.__setattr__(self, "_class_of", {tag: number for number, tag in enumerate(self.tags)})
        if len(self._class_of) != len(self.tags):
            raise UserError("a tag stands twice in the vocabulary", field=schema.TAGS)

    @property
    def size(self) -> int:
        """Number of classes."""
        return len(self.tags)

    def encode(self, tags: Iterable[str]) -> list[int]:
        """Class numbers of a video's tags, ascending, each once; tags outside the vocabulary have none."""
        class_of = self._class_of
        return sorted({class_of[tag] for tag in tags if tag in class_of})

    @classmethod
    def from_file(cls, path: str | Path, size: int | None = None) -> TagVocabulary:
        """Read one tag a line: field 0 before the first tab; a number after it is the tag's count.

        Args:
            path: `tags.txt` of a data set, or the competition's `tag_list.txt`.
            size: Take at most this many, from the top; None takes all.

        Raises:
            UserError: No such file, not UTF-8, no tags, a blank line, a tag with outer blanks or control
                characters, a tag that stands twice (names both lines).
        """
        path = Path(path)
        _check_size(size)
        lines = _read_lines(path)
        first_line: dict[str, int] = {}
        counts: list[int] = []
        for number, line in enumerate(lines, 1):
            tag, _, rest = line.partition("\t")
            if not is_plain_line(tag):
                what = "is blank" if not tag.strip() else f"{tag!r:.60} holds outer blanks or control characters"
                raise UserError(what, file=path, record=number, field=schema.TAGS, fix="write one tag a line")
            if tag in first_line:
                raise UserError(
                    f"the tag {tag!r:.60} stands already in line {first_line[tag]}",
                    file=path,
                    record=number,
                    field=schema.TAGS,
                    fix="remove one of the lines",
                )
            first_line[tag] = number
            count = rest.partition("\t")[0]
            if count.isdecimal():
                counts.append(int(count))
        tags = tuple(first_line)
        known = tuple(counts) if len(counts) == len(tags) else ()
        return cls(tags[:size], known[:size])

    @classmethod
    def build(
        cls,
        videos: Videos,
        size: int | None = None,
        min_count: int = 1,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> TagVocabulary:
        """Take the most frequent tags of a data set; equally frequent ones in the order of their UTF-8 bytes.

        Args:
            videos: The data set; its tag column is scanned in Arrow, not copied.
            size: At most this many; None takes all.
            min_count: Leave out tags that occur less often.
            rows: Count only these rows, those that may be trained on; None counts all.

        Raises:
            UserError: No tag is frequent enough.
        """
        column = videos.column(schema.TAGS)
        return cls.count(column if rows is None else column.take(pa.array(rows)), size, min_count, place=videos.place)

    @classmethod
    def count(cls, column: pa.ChunkedArray, size: int | None, min_count: int, *, place: str) -> TagVocabulary:
        """Take the most frequent tags of a column list<string>; `place` is where it is from. See `build`."""
        _check_size(size)
        flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], pa.string())
        found = pc.value_counts(flat)
        table = pa.table({"tag": found.field("values"), "count": found.field("counts")})
        table = table.filter(pc.greater_equal(table["count"], min_count))
        table = table.sort_by([("count", "descending"), ("tag", "ascending")]).slice(0, size)
        if not len(table):
            raise UserError(
                f"no tag occurs {min_count} times or more" if len(flat) else "the videos have no tags",
                file=place,
                field=schema.TAGS,
                fix=("lower the least count, or " if len(flat) else "") + "train without tag classification",
            )
        return cls(tuple(table["tag"].to_pylist()), tuple(table["count"].to_pylist()))

    def save(self, path: str | Path) -> None:
        """Write one tag a line, with its count where known; `from_file` reads it back."""
        counts: Sequence[str] = [f"\t{count}" for count in self.counts] or [""] * self.size
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(f"{tag}{count}\n" for tag, count in zip(self.tags, counts, strict=True))


def _check_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise UserError(f"is {size}, must be at least 1", field="size")


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("no such file", file=path, fix="name a file with one tag a line") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path, fix="check its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", file=path) from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError("holds no tags", file=path, fix="write one tag a line")
    return [line.removesuffix("\r") for line in lines]
