"""Split labelled pairs into training, validation and test, with the overlap of videos always stated.

A video that stands in a validation pair and in a training pair makes the validation score too high: the
winner's rule (`pair_or`) and random folds let it happen, with a validation-test gap of .050 and .034;
dropping the training pairs that share a video (`video_disjoint`, as the 3rd place did) leaves .008.
"""

from __future__ import annotations

import contextlib
import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, require_new
from vidsim.data.pairs import Pairs, read_pairs, write_pairs

Method = Literal["video_disjoint", "pair_or", "random"]
Indices = npt.NDArray[np.int64]
PARTS = ("train", "validation", "dropped", "test")
HOLDOUT_FILE = "holdout_ids.txt"


@dataclass(frozen=True)
class Split:
    """Positions of pairs, each ascending; together every pair once.

    Attributes:
        train: Pairs to train on.
        validation: Pairs to judge by.
        dropped: Pairs in neither, because they would share a video with both.
        overlap: Videos of validation pairs that also stand in training pairs.
        test: Pairs held out to the end; empty for folds.
    """

    train: Indices
    validation: Indices
    dropped: Indices
    overlap: int
    test: Indices


def split_pairs(
    pairs: Pairs, method: Method = "video_disjoint", fold: int = 0, num_folds: int = 5, seed: int = 0
) -> Split:
    """One of K folds.

    - `video_disjoint`: the validation pairs are a region of the pair graph, so that few others touch it;
      every pair is validation in exactly one fold; training pairs share no video with validation pairs, and
      the pairs that would are dropped.
    - `pair_or`: validation pairs are those with both ids % num_folds == fold, all others are trained on: the
      rule of the 2021 winner, for comparison; validation videos leak into training.
    - `random`: shuffled pairs; validation videos leak too.

    Raises:
        UserError: Fold out of range, ids that are no numbers (`pair_or`), nothing left to train on or to
            validate on.
    """
    if num_folds < 2 or not 0 <= fold < num_folds:
        what = f"fold {fold} of {num_folds} folds cannot be"
        raise UserError(what, field="fold", fix="give at least 2 folds, and a fold from 0 to the last")
    ends = _ends(pairs)
    everything = np.arange(len(pairs), dtype=np.int64)
    if method == "video_disjoint":
        groups = _strata(ends, 1 / num_folds, seed)
        validation = np.concatenate([np.array_split(group, num_folds)[fold] for group in groups])
    elif method == "pair_or":
        remainder = _remainders(pairs, num_folds)
        validation = np.flatnonzero((remainder == fold).all(axis=0))
    elif method == "random":
        validation = np.array_split(np.random.default_rng(seed).permutation(everything), num_folds)[fold]
    else:
        raise UserError(f"{method!r} is no way to split", field="method", fix=f"use {', '.join(get_args(Method))}")
    validation = np.sort(validation)
    rest = np.setdiff1d(everything, validation, assume_unique=True)
    touching = _touches(ends, rest, validation) if method == "video_disjoint" else np.zeros(len(rest), dtype=bool)
    train = rest[~touching]
    empty = np.array([], dtype=np.int64)
    split = Split(train, validation, rest[touching], _overlap(ends, train, validation), empty)
    _check_not_empty({"train": train, "validation": validation}, pairs)
    return split


def split_fractions(pairs: Pairs, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0) -> Split:
    """Train, validation and test that share no video at all.

    Test and validation get their full share; pairs between two parts are dropped, so that training gets what
    is left.

    Args:
        pairs: The pairs.
        fractions: Shares of train, validation and test; each above 0, they add up to 1.
        seed: Another seed cuts the graph elsewhere.

    Raises:
        UserError: Fractions that are not three shares, or a part without pairs.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"{' '.join(f'{share:g}' for share in fractions)} are not three shares above 0 that add up to 1",
            field="--fractions",
        )
    ends = _ends(pairs)
    parts: list[list[Indices]] = [[], [], []]
    # The groups share no video, so that each can be cut by itself.
    for group in _strata(ends, min(fractions), seed):
        test = group[: round(fractions[2] * len(group))]
        rest = group[len(test) :]
        free = rest[~_touches(ends, rest, test)]
        validation = free[: round(fractions[1] * len(group))]
        free = free[len(validation) :]
        train = free[~_touches(ends, free, validation)]
        for part, found in zip(parts, (train, validation, test), strict=True):
            part.append(found)
    train, validation, test = (np.sort(np.concatenate(part)) for part in parts)
    used = np.concatenate([train, validation, test])
    dropped = np.setdiff1d(np.arange(len(pairs), dtype=np.int64), used)
    _check_not_empty({"train": train, "validation": validation, "test": test}, pairs)
    return Split(train, validation, dropped, _overlap(ends, train, validation), test)


def describe(split: Split, pairs: Pairs) -> str:
    """Counts of pairs and videos of each part, and the overlap, as text for people."""
    ends = _ends(pairs)
    parts = {
        "train": split.train,
        "validation": split.validation,
        "test": split.test,
        "dropped": split.dropped,
    }
    if not len(split.test):
        del parts["test"]
    lines = []
    for name, part in parts.items():
        videos = len(np.unique(ends[:, part]))
        lines.append(f"{name:<11}{len(part):>10,} pairs {len(part) / len(pairs):>7.1%} {videos:>10,} videos")
    num_validation = len(np.unique(ends[:, split.validation]))
    share = split.overlap / num_validation if num_validation else 0.0
    leak = "  <- these videos leak: the validation score will be too high" if split.overlap else ""
    lines.append(f"overlap train/validation: {split.overlap:,} of {num_validation:,} videos ({share:.1%}){leak}")
    if len(split.test):
        lines.append(f"overlap train/test: {_overlap(ends, split.train, split.test):,} videos")
        lines.append(f"overlap validation/test: {_overlap(ends, split.validation, split.test):,} videos")
    return "\n".join(lines)


def _ends(pairs: Pairs) -> Indices:
    """Both videos of each pair as numbers, int64 [2, N]."""
    both = pa.chunked_array([pa.array(pairs.id1, pa.string()), pa.array(pairs.id2, pa.string())])
    numbers = both.combine_chunks().dictionary_encode().indices.to_numpy()
    return numbers.astype(np.int64).reshape(2, len(pairs))


def _strata(ends: Indices, smallest_part: float, seed: int) -> list[Indices]:
    """Groups of pairs that share no video, each in an order that keeps neighbours near each other.

    A component of the pair graph that is larger than the smallest part (a share of all pairs) has to be cut
    and is a group of its own; all others form one group, in random order. Cutting every group alike gives
    parts of one kind: the competition's graph has one component with two thirds of the pairs, the rest are
    mostly single pairs.
    """
    num_videos = int(ends.max(initial=-1)) + 1
    generator = np.random.default_rng(seed)
    graph = coo_array((np.ones(ends.shape[1], dtype=bool), (ends[0], ends[1])), shape=(num_videos, num_videos))
    num_components, of_video = connected_components(graph, directed=False)
    component: Indices = generator.permutation(num_components)[of_video][ends[0]]
    reached = _grow(ends, generator.permutation(num_videos))[ends]
    order = np.lexsort((reached.min(axis=0), reached.max(axis=0), component)).astype(np.int64)
    large = np.flatnonzero(np.bincount(component) > smallest_part * ends.shape[1])
    groups = [order[component[order] == number] for number in large]
    return [*groups, order[~np.isin(component[order], large)]]


def _grow(ends: Indices, starts: Indices) -> Indices:
    """Rank of each video when a region grows from each start, always by the video with fewest links outward.

    Pairs ordered by the rank of their later video are complete early, so a stretch of them touches few others
    (on random and on similarity-like graphs a third fewer than in breadth-first order).
    """
    neighbours: list[list[int]] = [[] for _ in starts]
    for first, second in ends.T.tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    outward = [len(found) for found in neighbours]
    rank = [-1] * len(starts)
    count = 0
    for start in starts.tolist():
        heap = [(0, start)]
        while heap:
            video = heapq.heappop(heap)[1]
            if rank[video] >= 0:
                continue
            rank[video] = count
            count += 1
            for other in neighbours[video]:
                if rank[other] < 0:
                    outward[other] -= 2  # one link outward less, one link inward more
                    heapq.heappush(heap, (outward[other], other))
    return np.array(rank, dtype=np.int64)


def _touches(ends: Indices, candidates: Indices, held_out: Indices) -> npt.NDArray[np.bool_]:
    """Which of the candidate pairs share a video with a held-out pair."""
    marked = np.zeros(int(ends.max(initial=-1)) + 1, dtype=bool)
    marked[ends[:, held_out]] = True
    return np.logical_or(*marked[ends[:, candidates]])


def _overlap(ends: Indices, first: Indices, second: Indices) -> int:
    return len(np.intersect1d(ends[:, first], ends[:, second]))


def _remainders(pairs: Pairs, num_folds: int) -> Indices:
    remainders = []
    for name, ids in (("id1", pairs.id1), ("id2", pairs.id2)):
        for row, id in enumerate(ids):
            if not (id.isascii() and id.isdecimal()):
                raise UserError(
                    f"pair {row}: {id!r:.40} is no whole number, and pair_or splits by id % num_folds",
                    file=pairs.name,
                    field=name,
                    fix="use video_disjoint",
                )
        remainders.append([int(id) % num_folds for id in ids])
    return np.array(remainders, dtype=np.int64)


def _check_not_empty(parts: dict[str, Indices], pairs: Pairs) -> None:
    for name, part in parts.items():
        if not len(part):
            raise UserError(
                f"no pair of {len(pairs):,} is left for {name}",
                file=pairs.name,
                fix="give more pairs, another number of folds, or another seed; where all videos are linked to each "
                "other, no cut separates them",
            )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim split",
        description="Split labelled pairs so that no video stands in two parts; prints what is dropped.",
        epilog="example: vidsim split data/aiac/pairs.tsv --out data/split --fractions 0.7 0.15 0.15",
    )
    parser.add_argument("pairs", type=Path, help="pairs: TSV, CSV or Parquet with id1, id2, score")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=[0.7, 0.15, 0.15],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the three parts (default 0.7 0.15 0.15)",
    )
    how.add_argument("--num_folds", type=int, help="write K folds, fold_0 ..., each with train and validation")
    parser.add_argument(
        "--method",
        choices=get_args(Method),
        default="video_disjoint",
        help="how to make the folds (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed cuts elsewhere (default %(default)s)")
    parser.add_argument(
        "--score_range",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="smallest and largest score allowed in PAIRS (default 0 1)",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove an earlier split from --out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`vidsim split`."""
    args = _parser().parse_args(argv)
    require_at_least(vars(args), {"num_folds": 2, "seed": 0}, prefix="--")
    if args.method != "video_disjoint" and args.num_folds is None:
        raise UserError(f"{args.method} makes folds only", field="--method", fix="add --num_folds 5")
    if args.out.is_dir():
        require_new(args.out, overwrite=args.overwrite)
    pairs = read_pairs(args.pairs, score_range=tuple(args.score_range))
    if args.num_folds is None:
        splits = {args.out: split_fractions(pairs, args.fractions, args.seed)}
    else:
        folds = range(args.num_folds)
        splits = {args.out / f"fold_{i}": split_pairs(pairs, args.method, i, args.num_folds, args.seed) for i in folds}
    _remove_split(args.out, keep=args.pairs)
    for fold, (folder, split) in enumerate(splits.items()):
        if args.num_folds is not None:
            print(f"fold {fold} of {args.num_folds} ({args.method})")
        _write(folder, split, pairs)
    return 0


def _remove_split(out: Path, keep: Path) -> None:
    """Remove an earlier split: a part that stayed would share videos with the new ones. Other files stay.

    Raises:
        UserError: `keep` would be among what is removed.
    """
    folds = [folder for folder in out.glob("fold_*") if re.fullmatch("fold_[0-9]+", folder.name)]
    names = [*(f"{part}.tsv" for part in PARTS), HOLDOUT_FILE]
    files = [path for folder in (out, *folds) for path in map(folder.joinpath, names) if path.is_file()]
    if any(path.samefile(keep) for path in files):
        raise UserError("would be replaced", file=keep, fix="choose another --out")
    for path in files:
        path.unlink()
    for folder in folds:
        with contextlib.suppress(OSError):  # something else is in it
            folder.rmdir()


def _write(folder: Path, split: Split, pairs: Pairs) -> None:
    parts = {name: getattr(split, name) for name in PARTS if name != "test" or len(split.test)}
    for name, part in parts.items():
        write_pairs(folder / f"{name}.tsv", pairs.take(part))
    held_out = pairs.take(np.concatenate([split.validation, split.test])).unique_ids()
    with atomic_path(folder / HOLDOUT_FILE) as temporary:
        temporary.write_text("".join(f"{id}\n" for id in held_out), encoding="utf-8")
    print(describe(split, pairs))
    print(f"wrote {folder}")
