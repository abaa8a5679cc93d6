"""Labelled pairs of videos: read and write TSV, CSV and Parquet."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, require_readable
from vidsim.data.rows import is_plain_line

COLUMNS = ("id1", "id2", "score")
_MEND_LINE = "mend or remove the line"
_SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
_SEPARATOR_NAMES = {".tsv": "tabs", ".txt": "tabs", ".csv": "commas"}


@dataclass(frozen=True)
class Pairs:
    """Pairs of videos with how alike they are.

    Attributes:
        id1: First video of each pair.
        id2: Second video.
        score: float64 `[N]`, larger = more alike.
        name: Where they came from, for messages.
    """

    id1: list[str]
    id2: list[str]
    score: npt.NDArray[np.float64]
    name: str = "pairs"

    def __post_init__(self) -> None:
        """Check that the three belong together."""
        if not len(self.id1) == len(self.id2) == len(self.score):
            raise UserError(f"{len(self.id1)} and {len(self.id2)} ids, but {len(self.score)} scores")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.id1)

    def take(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> Pairs:
        """The pairs at these positions, in this order."""
        positions = np.asarray(indices, dtype=np.int64)
        rows = positions.tolist()
        id1, id2 = ([ids[row] for row in rows] for ids in (self.id1, self.id2))
        return Pairs(id1, id2, self.score[positions], self.name)

    def unique_ids(self) -> list[str]:
        """Every video once, in the order of first appearance."""
        return list(dict.fromkeys(id for pair in zip(self.id1, self.id2, strict=True) for id in pair))


def tie_ceiling(scores: npt.ArrayLike) -> float:
    """The highest Spearman correlation that predictions without ties can reach with these scores, in (0, 1].

    `sqrt(1 - sum (t^3 - t) / (N^3 - N))` over the groups of t equal scores: sorted right, the predictions' ranks
    within a group still spread, where the scores share one. Scores of AIAC 2021: .974.

    Args:
        scores: float [N], finite.

    Raises:
        UserError: Fewer than two different scores, where no correlation is defined.
    """
    counts = np.unique(np.asarray(scores, dtype=np.float64), return_counts=True)[1].astype(np.float64)
    if len(counts) < 2:
        raise UserError("fewer than two different scores: no ranking to agree with", field="score")
    total = counts.sum()
    return float(np.sqrt(1 - (counts**3 - counts).sum() / (total**3 - total)))


def read_pairs(path: str | Path, *, score_range: tuple[float, float] | None = (0.0, 1.0)) -> Pairs:
    """Read pairs: TSV (`.tsv`, `.txt`) or `.csv` with or without a header `id1 id2 score`, or `.parquet`.

    Without a header a line has exactly three fields (the competition's `label.tsv`); with one, columns are
    found by name and others are not read.

    Args:
        path: The file.
        score_range: Smallest and largest score allowed; None allows any finite number.

    Raises:
        UserError: No such file, not text, no pairs, a line with other fields, an empty id, a score that is no
            number, not finite or out of range; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", file=path, fix="name a file of pairs: id1, id2, score")
    require_readable(path)
    pairs, first_record = (_read_parquet(path), 0) if path.suffix == ".parquet" else _read_text(path)
    if not len(pairs):
        raise UserError("holds no pairs", file=path, fix="write id1, id2 and a score on each line")
    _check_scores(pairs.score, path, score_range, first_record)
    return replace(pairs, name=str(path))


def write_pairs(path: str | Path, pairs: Pairs) -> None:
    """Write pairs with a header, in the format of the suffix; whole or not at all.

    Raises:
        UserError: Another suffix than .tsv, .txt, .csv, .parquet.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        columns = [pa.array(pairs.id1, pa.string()), pa.array(pairs.id2, pa.string()), pa.array(pairs.score)]
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns, names=list(COLUMNS)), temporary)
        return
    separator = _separator(path)
    rows = zip(pairs.id1, pairs.id2, pairs.score.tolist(), strict=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if separator == ",":
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows((first, second, repr(score)) for first, second, score in rows)
        else:
            file.write("\t".join(COLUMNS) + "\n")
            file.writelines(f"{first}\t{second}\t{score!r}\n" for first, second, score in rows)


def _separator(path: Path) -> str:
    try:
        return _SEPARATORS[path.suffix]
    except KeyError:
        raise UserError(
            f"the suffix {path.suffix!r} is not known", file=path, fix="use .tsv, .csv or .parquet"
        ) from None


def _lines(path: Path) -> Iterator[list[str]]:
    """Fields of each line."""
    separator = _separator(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if separator == ",":
                yield from csv.reader(file, strict=True)
            else:
                for line in file:
                    yield line.rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", file=path) from None
    except csv.Error as error:
        raise UserError(f"is not a CSV file ({error})", file=path) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _header(fields: Sequence[str], path: Path) -> tuple[int, int, int] | None:
    """Positions of the three columns if these fields are a header, None if they are a pair."""
    names = [name.strip().lower() for name in fields]
    if all(column in names for column in COLUMNS):
        return names.index("id1"), names.index("id2"), names.index("score")
    if len(fields) == 3 and not _is_number(fields[2]):
        raise UserError(
            f"{fields[2]!r:.40} is no number, and the line is no header either",
            file=path,
            record=1,
            field="score",
            fix="give the columns id1, id2, score, or no header and three fields",
        )
    return None


def _read_text(path: Path) -> tuple[Pairs, int]:
    """The pairs of a text file, and the line number of the first."""
    id1: list[str] = []
    id2: list[str] = []
    scores: list[float] = []
    first, second, third = 0, 1, 2
    width, first_record = 3, 1
    for number, fields in enumerate(_lines(path), 1):
        if number == 1 and (found := _header(fields, path)) is not None:
            (first, second, third), width, first_record = found, len(fields), 2
            continue
        if len(fields) != width:
            what = f"{len(fields)} fields, {width} expected"
            raise UserError(what, file=path, record=number, fix=f"separate them by {_SEPARATOR_NAMES[path.suffix]}")
        pair = [_plain_id(fields[place], path, number, name) for name, place in (("id1", first), ("id2", second))]
        try:
            scores.append(float(fields[third]))
        except ValueError:
            what = f"{fields[third]!r:.40} is no number"
            raise UserError(what, file=path, record=number, field="score", fix=_MEND_LINE) from None
        id1.append(pair[0])
        id2.append(pair[1])
    return Pairs(id1, id2, np.array(scores, dtype=np.float64)), first_record


def _read_parquet(path: Path) -> Pairs:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"is not a Parquet file ({error})", file=path) from None
    for name in COLUMNS:
        if table.column_names.count(name) != 1:
            raise UserError(f"needs the columns {', '.join(COLUMNS)}", file=path, field=name)
    ids = [_ids_of(table.column(name), name, path) for name in COLUMNS[:2]]
    score = table.column("score")
    if score.null_count or not (pa.types.is_floating(score.type) or pa.types.is_integer(score.type)):
        raise UserError(f"must be numbers without nulls, is {score.type}", file=path, field="score")
    return Pairs(ids[0], ids[1], score.cast(pa.float64()).to_numpy())


def _ids_of(column: pa.ChunkedArray, name: str, path: Path) -> list[str]:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise UserError(f"must be text, is {column.type}", file=path, field=name)
    return [_plain_id(value or "", path, row, name) for row, value in enumerate(column.cast(pa.string()).to_pylist())]


def _plain_id(text: str, path: Path, record: int, name: str) -> str:
    """The id without outer blanks, which must be able to stand in a line."""
    id = text.strip()
    if not is_plain_line(id):
        what = f"{id!r:.60} holds control characters" if id else "is empty"
        raise UserError(what, file=path, record=record, field=name, fix=_MEND_LINE)
    return id


def _check_scores(
    score: npt.NDArray[np.float64], path: Path, score_range: tuple[float, float] | None, first_record: int
) -> None:
    low, high = score_range or (-math.inf, math.inf)
    bad = np.flatnonzero(~np.isfinite(score) | (score < low) | (score > high))
    if len(bad):
        value = score[bad[0]]
        what = f"{value:g} is not finite" if not np.isfinite(value) else f"{value:g} is not within {low:g} to {high:g}"
        more = f" ({len(bad):,} such scores)" if len(bad) > 1 else ""
        fix = f"scale the scores to {low:g} to {high:g}" if np.isfinite(value) else _MEND_LINE
        raise UserError(what + more, file=path, record=int(bad[0]) + first_record, field="score", fix=fix)
