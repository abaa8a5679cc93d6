"""`vidsim score`: how well cosines of embeddings agree with labelled pairs, with what certainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.common.files import write_json
from vidsim.data.embeddings import read_embeddings, shown
from vidsim.data.pair_cosines import cosines_of_pairs
from vidsim.data.pairs import Pairs, read_pairs, tie_ceiling
from vidsim.ensemble.bootstrap import brackets, percentile_interval, spearman_resamples
from vidsim.modeling.metrics import mse, pearson, spearman

Float64 = npt.NDArray[np.float64]

_ALL_PAIRS = "all"
# Cosines of one and the same direction differ by rounding; float32 components leave about 1e-7.
_CONSTANT_WITHIN = 1e-6


@dataclass(frozen=True, kw_only=True)
class Score:
    """Agreement of one embedding with the labels of one group of pairs.

    Attributes:
        name: The embeddings.
        group: `all`, or the group of pairs.
        num_pairs: Pairs scored.
        spearman: Rank correlation of cosine and label, -1..1.
        interval: 95 % bootstrap interval of it, None where too few resamples have a value.
        pearson: Linear correlation, -1..1.
        mse: Mean squared error of the cosine, clipped to 0..1, against the raw label.
        tie_ceiling: Highest Spearman correlation that predictions without ties can reach with these labels.
        difference: Spearman correlation less that of the first embedding; None for the first.
        difference_interval: 95 % interval of the difference over the same draws.
    """

    name: str
    group: str
    num_pairs: int
    spearman: float
    interval: tuple[float, float] | None
    pearson: float
    mse: float
    tie_ceiling: float
    difference: float | None
    difference_interval: tuple[float, float] | None


def check_pairs(pairs: Pairs, name: str) -> None:
    """Refuse pairs that no correlation can be computed on.

    Raises:
        UserError: Fewer than three pairs, or all labels the same.
    """
    if len(pairs) <= 2:
        raise UserError(f"{len(pairs)} pairs, but a correlation needs at least 3", file=name)
    if pairs.score.min() == pairs.score.max():
        raise UserError(f"constant labels: all {len(pairs):,} scores are {pairs.score[0]:g}", file=name, field="score")


def check_predictions(cosines: Float64, name: str) -> None:
    """Refuse cosines without a ranking.

    Raises:
        UserError: All cosines are the same, or not all are finite.
    """
    if not np.isfinite(cosines).all():
        raise UserError(f"{int((~np.isfinite(cosines)).sum()):,} cosines are NaN or infinite", file=name)
    if np.ptp(cosines) < _CONSTANT_WITHIN:
        message = f"constant predictions: all {len(cosines):,} cosines are {cosines[0]:.6f}"
        raise UserError(message, file=name, fix="check the training: every video seems to get one embedding")


def score_cosines(
    cosines: Sequence[Float64],
    names: Sequence[str],
    pairs: Pairs,
    *,
    group: str = _ALL_PAIRS,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Score predictions against the labels of the pairs; intervals draw the pairs of one `id1` together.

    Args:
        cosines: M times float64 [N].
        names: M names.
        pairs: N pairs.
        group: Name of this group of pairs.
        num_resamples: Bootstrap resamples; 0 = no intervals.
        seed: Of the draws.

    Raises:
        UserError: Too few pairs, constant labels, or constant predictions (the model has collapsed).
    """
    check_pairs(pairs, f"pairs ({group})")
    for name, values in zip(names, cosines, strict=True):
        check_predictions(values, name)
    found = [spearman(predictions, pairs.score) for predictions in cosines]
    draws = np.empty((0, len(names)))
    if num_resamples:
        draws = spearman_resamples(cosines, pairs.score, groups=pairs.id1, num_resamples=num_resamples, seed=seed)
    ceiling = tie_ceiling(pairs.score)
    return [
        Score(
            name=name,
            group=group,
            num_pairs=len(pairs),
            spearman=found[m],
            interval=percentile_interval(draws[:, m]),
            pearson=pearson(cosines[m], pairs.score),
            mse=mse(np.clip(cosines[m], 0.0, 1.0), pairs.score),
            tie_ceiling=ceiling,
            difference=found[m] - found[0] if m else None,
            difference_interval=percentile_interval(draws[:, m] - draws[:, 0]) if m else None,
        )
        for m, name in enumerate(names)
    ]


def read_groups(path: str | Path) -> dict[str, str]:
    """Read lines `id<TAB>group`.

    Raises:
        UserError: No such file, another number of fields, an id that stands twice; names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", file=path) from None
    while lines and not lines[-1].strip():
        lines.pop()
    groups: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) != 2 or not all(fields):
            fix = "write `id<TAB>group` on each line"
            raise UserError("must be an id, a tab and a group", file=path, record=number, fix=fix)
        if fields[0] in groups:
            raise UserError(f"the id {fields[0]} stands twice", file=path, record=number, fix="keep one of the lines")
        groups[fields[0]] = fields[1]
    return groups


def score_by_group(
    cosines: Sequence[Float64], names: Sequence[str], pairs: Pairs, path: str, **options: Any
) -> list[Score]:
    """Score within groups of pairs: pairs inside a group, and pairs across two of them (`a | b`).

    Groups of pairs without a correlation (too few, all labels or cosines the same) are printed and left out.

    Args:
        cosines: See `score_cosines`.
        names: See there.
        pairs: See there.
        path: Lines `id<TAB>group`, see `read_groups`.
        options: Of `score_cosines`.

    Raises:
        UserError: A malformed file, videos of the pairs without a group (how many, the first five ids).
    """
    groups = read_groups(path)
    without = [video for video in pairs.unique_ids() if video not in groups]
    if without:
        what = f"{len(without):,} videos of the pairs have no group: {shown(without)}"
        raise UserError(what, file=path, field="--by", fix="add a line `id<TAB>group` for each")
    labels = np.array(
        [
            " | ".join(sorted({groups[first], groups[second]}))
            for first, second in zip(pairs.id1, pairs.id2, strict=True)
        ]
    )
    scores = []
    for group in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == group)
        part = [values[rows] for values in cosines]
        try:
            scores += score_cosines(part, names, pairs.take(rows), group=group, **options)
        except UserError as error:
            print(f"group {group} has no score: {error}")
    return scores


def table(scores: Sequence[Score]) -> str:
    """The scores as lines of text."""
    header = [
        "embeddings",
        "group",
        "pairs",
        "Spearman",
        "95 % interval",
        "Pearson",
        "MSE",
        "to the first",
        "",
    ]
    rows = [
        [
            score.name,
            score.group,
            f"{score.num_pairs:,}",
            f"{score.spearman:.4f}",
            brackets(score.interval),
            f"{score.pearson:.4f}",
            f"{score.mse:.4f}",
            "" if score.difference is None else f"{score.difference:+.4f}",
            brackets(score.difference_interval, "+"),
        ]
        for score in scores
    ]
    shown_columns = [i for i in range(len(header)) if any(row[i] for row in rows)]
    if all(score.group == _ALL_PAIRS for score in scores):
        shown_columns.remove(1)
    lines = [[row[i] for i in shown_columns] for row in [header, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown_columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim score",
        description="Score embeddings on labelled pairs: Spearman and Pearson correlation of the cosines with the "
        "labels, with bootstrap intervals, also of the difference to the first embeddings.",
        epilog="example: vidsim score emb/a emb/fused pairs.tsv --json score.json",
    )
    parser.add_argument(
        "embeddings", nargs="+", help="embeddings folders or files; each later one is compared to the first"
    )
    parser.add_argument("pairs", help="TSV, CSV or Parquet: id1, id2, score")
    parser.add_argument("--by", metavar="FILE", help="lines `id<TAB>group`: score inside and across these groups too")
    parser.add_argument(
        "--score_range",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="scores allowed (default 0 1)",
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples; 0 = no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the score table."""
    args = _parser().parse_args(argv)
    require_at_least(vars(args), {"bootstrap": 0, "seed": 0}, "--")
    pairs = read_pairs(args.pairs, score_range=tuple(args.score_range))
    check_pairs(pairs, args.pairs)
    embeddings = [read_embeddings(path) for path in args.embeddings]
    cosines = [cosines_of_pairs(each, pairs) for each in embeddings]
    options: dict[str, Any] = {"num_resamples": args.bootstrap, "seed": args.seed}
    scores = score_cosines(cosines, args.embeddings, pairs, **options)
    if args.by:
        scores += score_by_group(cosines, args.embeddings, pairs, args.by, **options)
    print(table(scores))
    ceiling = scores[0].tie_ceiling
    print(f"With the ties of these labels, predictions without ties reach at most {ceiling:.4f}.")
    if args.bootstrap and scores[0].interval is None:
        print("No interval: the pairs of one first video are drawn together, which leaves too few different draws.")
    elif args.bootstrap:
        print(f"Intervals: {args.bootstrap:,} bootstrap draws; the pairs of one first video are drawn together.")
    if args.json:
        write_json(args.json, {"pairs": args.pairs, "seed": args.seed, "scores": [asdict(each) for each in scores]})
        print(f"wrote {args.json}")
    return 0
