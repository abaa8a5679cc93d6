"""Who has watched what, as numbers: the histories that `vidsim recommend` starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError
from vidsim.common.progress import progress
from vidsim.data.cowatch_sessions import KEY, TIME, VIDEO, SessionColumns, read_sessions
from vidsim.data.embeddings import positions, shown

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Histories:
    """The videos each user has watched, every video once.

    Attributes:
        users: U users, in the order in which they first occur.
        starts: int64 [U + 1]; what user u watched stands at `starts[u] : starts[u + 1]`.
        videos: int64 [W], rows of the ids that `read_histories` was given; ascending for each user.
        counts: bool [W], whether the video speaks for the user's taste: rated high enough, and recent enough.
        num_unknown: Watches that were left out because their video is not among the ids.
    """

    users: list[str]
    starts: Int64
    videos: Int64
    counts: Bool
    num_unknown: int = 0

    def __len__(self) -> int:
        """Number of users."""
        return len(self.users)

    @classmethod
    def of(cls, users: Sequence[str], user: Int64, video: Int64) -> Histories:
        """Sort watches into histories, in which all videos count.

        Args:
            users: U users.
            user: int64 [n], number of the user of each watch.
            video: int64 [n].
        """
        num_videos = int(video.max(initial=0)) + 1
        owner, videos = np.divmod(np.unique(user * num_videos + video), num_videos)
        starts = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=len(users)), out=starts[1:])
        return cls(list(users), starts, videos, np.ones(len(videos), dtype=bool))

    def watched(self, user: int) -> Int64:
        """All videos of a user, which are never recommended again."""
        return self.videos[self.starts[user] : self.starts[user + 1]]

    def liked(self, user: int) -> Int64:
        """The videos that speak for a user's taste."""
        part = slice(self.starts[user], self.starts[user + 1])
        return self.videos[part][self.counts[part]]

    def num_liked(self) -> Int64:
        """How many videos speak for each user's taste, int64 [U]."""
        return np.diff(np.concatenate([[0], np.cumsum(self.counts)])[self.starts])

    def take(self, users: Int64) -> Histories:
        """Some of the users."""
        sizes = np.diff(self.starts)[users]
        member = np.repeat(np.arange(len(users)), sizes)
        offset = np.arange(len(member)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        place = self.starts[users][member] + offset
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        names = [self.users[user] for user in users.tolist()]
        return Histories(names, starts, self.videos[place], self.counts[place], self.num_unknown)


def read_histories(
    sources: Sequence[Path],
    columns: SessionColumns,
    ids: Sequence[str],
    *,
    drop_unknown: bool = False,
    last: int | None = None,
) -> Histories:
    """Read the histories of all users, in blocks; some tens of bytes a watch are held.

    Args:
        sources: Files of watches, see `read_sessions`.
        columns: Their columns. With a rating threshold the videos below it are watched, but do not count.
        ids: Distinct ids of the videos there are.
        drop_unknown: Leave out (and count) watches of other videos instead of refusing them.
        last: Only so many of a user's newest videos (of those rated high enough) count; needs times.

    Raises:
        UserError: Bad input, a video that is not among the ids (how many, the first five), no watch at all.
    """
    if last is not None and (last < 1 or columns.time is None):
        what = f"must be at least 1, not {last}" if last < 1 else "needs times"
        raise UserError(what, field="--last", fix="name the column with --time")
    numbers: dict[str, int] = {}
    reader = _Reader(ids, numbers, drop_unknown)
    everything = reader.read(sources, replace(columns, rating=None, min_rating=None))
    num_unknown = reader.num_unknown
    if not len(everything.user):
        raise UserError("holds no watch of a video that is there", file=sources[0])
    liked = everything if columns.min_rating is None else reader.read(sources, columns)
    if last is not None:
        liked = liked.newest(last, len(ids))
    histories = Histories.of(list(numbers), everything.user, everything.video)
    code = np.repeat(np.arange(len(histories)), np.diff(histories.starts)) * len(ids) + histories.videos
    counts = np.isin(code, liked.user * len(ids) + liked.video)
    return replace(histories, counts=counts, num_unknown=num_unknown)


@dataclass(frozen=True, eq=False)
class _Watches:
    """Watches in the order of the files: int64 [n], int64 [n], float64 [n] or None."""

    user: Int64
    video: Int64
    time: npt.NDArray[np.float64] | None

    def newest(self, count: int, num_videos: int) -> _Watches:
        """The `count` newest videos of each user, each at its newest watch."""
        assert self.time is not None
        order = np.lexsort((self.time, self.user))[::-1]  # each user's newest first
        _, first = np.unique(self.user[order] * num_videos + self.video[order], return_index=True)
        order = order[np.sort(first)]
        user = self.user[order]
        begins = np.flatnonzero(np.diff(user, prepend=-1) != 0)
        place = np.arange(len(user)) - np.repeat(begins, np.diff(np.append(begins, len(user))))
        kept = order[place < count]
        return _Watches(self.user[kept], self.video[kept], self.time[kept])


class _Reader:
    """Turns blocks of watches into numbers."""

    def __init__(self, ids: Sequence[str], numbers: dict[str, int], drop_unknown: bool) -> None:
        self.ids = ids
        self.numbers = numbers
        self.drop_unknown = drop_unknown
        self.num_unknown = 0

    def read(self, sources: Sequence[Path], columns: SessionColumns) -> _Watches:
        """All watches of known videos."""
        parts: list[tuple[np.ndarray, ...]] = []
        self.num_unknown = 0
        for source in sources:
            unknown: set[str] = set()
            for table, _ in progress(read_sessions(source, columns), desc=f"reading {source.name}", unit="blocks"):
                videos = table[VIDEO].combine_chunks().dictionary_encode()
                row_of = positions(videos.dictionary.to_pylist(), self.ids)
                rows = row_of[videos.indices.to_numpy()] if len(videos) else np.empty(0, np.int64)
                there = rows >= 0
                self.num_unknown += int((~there).sum())
                unknown.update(videos.dictionary.filter(pa.array(row_of < 0)).to_pylist())
                keys = table[KEY].filter(pa.array(there)).combine_chunks().dictionary_encode()
                number_of = [self.numbers.setdefault(key, len(self.numbers)) for key in keys.dictionary.to_pylist()]
                time = (table[TIME].to_numpy()[there],) if columns.time is not None else ()
                user = np.array(number_of, dtype=np.int64)[keys.indices.to_numpy()]
                parts.append((user.astype(np.int32), rows[there].astype(np.int32), *time))
            if unknown and not self.drop_unknown:
                what = f"{len(unknown):,} watched videos have no embedding: {shown(sorted(unknown))}"
                raise UserError(what, file=source, fix="embed them, or leave them out with --drop_unknown")
        joined = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, int)] * 2
        times = joined[2] if len(joined) == 3 else None
        return _Watches(joined[0].astype(np.int64), joined[1].astype(np.int64), times)


def user_number(users: Sequence[str], user: str, source: str | Path) -> int:
    """Where a user stands.

    Raises:
        UserError: The user has no history.
    """
    found = pc.index(pa.array(users, pa.string()), user).as_py()
    if found < 0:
        some = f"it holds {len(users):,} users: {shown(users[:5])}" if users else "it holds none"
        raise UserError(f"the user {user!r} has no history; {some}", file=source, field="--user")
    return int(found)
