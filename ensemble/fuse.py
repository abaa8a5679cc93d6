"""`vidsim ensemble`: fuse the embeddings of several models into one embedding of any width.

The members are L2-normalised, weighted and concatenated (the cosine is then the weighted mean of the members'
cosines), and projected on the `--dim` directions that keep most. The projection reads no labels. It is fitted
on the given embeddings themselves, as published for AIAC 2021, unless --fit_on or --fit_ids names others; it
is saved in --out, and --apply uses it again, for new videos, without fitting anything.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.common.files import require_new
from vidsim.data.embeddings import Embeddings, read_embeddings, write_embeddings
from vidsim.data.ids import read_ids
from vidsim.data.pairs import read_pairs
from vidsim.ensemble.projection import Projection, fit_projection, load_projection
from vidsim.ensemble.weight_search import search_weights

_DEFAULT_DIM = 256  # the most that AIAC 2021 Track 1 allows


def fuse(members: Sequence[Embeddings], projection: Projection, out: str | Path) -> Path:
    """Apply a projection to the members and write fused embeddings and the projection to a folder.

    Raises:
        UserError: Members that do not fit the projection or each other; see `Projection.apply`.
    """
    out = Path(out)
    ids, vectors = projection.apply(members)
    model = projection.save(out)
    data = {member.metadata.get("data") for member in members}
    metadata = {
        "model": model,
        "data": data.pop() if len(data) == 1 else None,
        "normalized": True,
        "members": [{"model": member.model, "weight": member.weight} for member in projection.members],
    }
    write_embeddings(out, ids, vectors, metadata)
    return out


def normalized_weights(weights: Sequence[float], num_members: int) -> list[float]:
    """Weights scaled to sum 1.

    Raises:
        UserError: Not one for each member, a negative or non-finite one, or all zero.
    """
    if len(weights) != num_members:
        what = f"{len(weights)} weights for {num_members} embeddings"
        raise UserError(what, field="--weights", fix="give one weight for each member")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise UserError(f"must be 0 or more and not all 0, not {list(weights)}", field="--weights")
    return [weight / sum(weights) for weight in weights]


def only_ids(members: Sequence[Embeddings], ids: Sequence[str]) -> list[Embeddings]:
    """The members cut down to some of their ids.

    Raises:
        UserError: An id that a member does not have.
    """
    rows = [member.rows_of(ids) for member in members]
    return [
        replace(member, ids=list(ids), vectors=member.vectors[row]) for member, row in zip(members, rows, strict=True)
    ]


def _fit_set(args: argparse.Namespace, members: list[Embeddings]) -> list[Embeddings]:
    """What the weights and the projection are fitted on."""
    if args.fit_on:
        if len(args.fit_on) != len(members):
            message = f"{len(args.fit_on)} embeddings to fit on for {len(members)} to fuse"
            raise UserError(message, field="--fit_on", fix="give one for each member, in the same order")
        fitted = [read_embeddings(path) for path in args.fit_on]
        for member, other in zip(members, fitted, strict=True):
            if (member.dim, member.metadata.get("model")) != (other.dim, other.metadata.get("model")):
                message = f"is of another model or width than {member.name}"
                raise UserError(message, file=other.name, field="--fit_on", fix="keep the order of the members")
        return fitted
    return members


def _choose_weights(args: argparse.Namespace, fit_set: list[Embeddings]) -> list[float]:
    num_members = len(fit_set)
    if not args.search_weights:
        return normalized_weights(args.weights or [1.0] * num_members, num_members)
    pairs = read_pairs(args.search_weights, score_range=None)  # only the order of the scores counts
    found = search_weights(fit_set, pairs, seed=args.seed)
    print(found.report([Path(member.name).name for member in fit_set]))
    return normalized_weights(found.weights, num_members)


def _fit(args: argparse.Namespace, members: list[Embeddings]) -> Projection:
    fit_set = _fit_set(args, members)
    weights = _choose_weights(args, fit_set)
    if args.fit_ids:
        fit_set = only_ids(fit_set, read_ids(args.fit_ids))
    projection = fit_projection(fit_set, weights, args.dim or _DEFAULT_DIM)
    source = args.fit_ids or (", ".join(args.fit_on) if args.fit_on else "the given embeddings themselves")
    print(f"projection fitted on {projection.num_fitted:,} videos of {source}; no labels are read for it")
    if not (args.fit_on or args.fit_ids):
        print("  (--fit_on keeps a test set out of the fit; --apply uses a saved projection)")
    return projection


def _describe(projection: Projection) -> str:
    total = projection.concat_dim
    names = ", ".join(f"{member.name} {member.weight:.3f}" for member in projection.members)
    lines = [f"members and weights: {names}"]
    if projection.dim == total:
        lines.append(f"{total} dimensions are kept of {total}: a rotation, cosines do not change")
    else:
        lines.append(f"{projection.dim} dimensions of {total} keep {projection.explained:.4%} of the squared norm")
    if projection.rank < projection.dim:
        lines.append(
            f"warning: the fitted videos span {projection.rank} dimensions only; the other "
            f"{projection.dim - projection.rank} are arbitrary for new videos (fit on more videos)"
        )
    return "\n".join(lines)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim ensemble",
        description="Fuse the embeddings of several models into one embedding of any width:\n"
        "normalised, weighted, concatenated and projected on the --dim directions that keep\n"
        "most. The projection reads no labels; it is fitted on the given embeddings\n"
        "themselves unless --fit_on or --fit_ids names others, and is saved in --out, from\n"
        "where --apply uses it again for new videos.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim ensemble emb/a emb/b emb/c --dim 256 --out emb/fused\n"
        "  vidsim ensemble val/a val/b --search_weights validation.tsv --out val/fused\n"
        "  vidsim ensemble test/a test/b --apply val/fused --out test/fused",
    )
    parser.add_argument("embeddings", nargs="+", help="embeddings of the same videos, one for each model")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the fused embeddings go")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument("--dim", type=int, help=f"width of the fused embedding ({_DEFAULT_DIM})")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", nargs="+", type=float, metavar="W", help="one for each; scaled to sum 1")
    weights.add_argument("--search_weights", metavar="PAIRS", help="labelled pairs to search the weights on")
    fit = parser.add_mutually_exclusive_group()
    fit.add_argument(
        "--fit_on", nargs="+", metavar="EMB", help="fit weights and projection on these embeddings instead"
    )
    fit.add_argument(
        "--fit_ids",
        metavar="FILE",
        help="fit the projection on these ids only: lines of a file, or a data set folder",
    )
    fit.add_argument("--apply", metavar="FOLDER", help="use the weights and the projection saved in this folder")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples in the report of the weight search")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Fuse embeddings."""
    args = _parser().parse_args(argv)
    if args.dim is not None and args.dim < 1:
        raise UserError(f"must be at least 1, not {args.dim}", field="--dim")
    require_at_least(vars(args), {"seed": 0}, "--")
    inputs = [*args.embeddings, *(args.fit_on or []), *([args.apply] if args.apply else [])]
    if Path(args.out).resolve() in [Path(path).resolve() for path in inputs]:
        raise UserError("is also an input", file=args.out, field="--out", fix="choose another folder")
    if args.apply and (args.weights or args.search_weights or args.dim):
        fix = "leave --weights, --search_weights and --dim out"
        raise UserError("has its own weights and width", file=args.apply, field="--apply", fix=fix)
    require_new(args.out, overwrite=args.overwrite)
    members = [read_embeddings(path) for path in args.embeddings]
    if args.apply:
        projection = load_projection(args.apply)
        print(f"applying the projection of {args.apply}, fitted on {projection.num_fitted:,} videos")
    else:
        projection = _fit(args, members)
    fuse(members, projection, args.out)
    print(_describe(projection))
    print(f"wrote {len(members[0]):,} embeddings of width {projection.dim} to {args.out}")
    return 0
