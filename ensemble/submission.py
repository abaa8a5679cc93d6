"""`vidsim submit`: write a submission, or check one.

A submission (AIAC 2021 Track 1) is a zip with `result.json` at its root: `{id: [at most 256 finite numbers]}`
with every asked id once. The check is stricter than the organisers' evaluator, which ignores what it does not
need.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path
from vidsim.data.embeddings import Embeddings, positions, read_embeddings, shown
from vidsim.data.ids import read_ids
from vidsim.data.pair_cosines import pair_cosines
from vidsim.data.pairs import Pairs, read_pairs
from vidsim.ensemble.result_file import RESULT_FILE, entries, read_result_text
from vidsim.ensemble.score import check_pairs, check_predictions
from vidsim.modeling.metrics import spearman

MAX_DIM: Final = 256

Float64 = npt.NDArray[np.float64]

_NORM_WITHIN = 1e-3
_NUM_SAMPLED_PAIRS = 10_000
_ROUNDING_BELOW = 1e-2
# A float64 needs at most 24 characters; the rest is room for blanks, ids and a small file's overhead.
_BYTES_PER_NUMBER = 64
_SPARE_BYTES = 1 << 20
_WRITE_IT = "write it with `vidsim submit`"


@dataclass(frozen=True, eq=False)
class Submission:
    """A checked submission.

    Attributes:
        name: The file.
        ids: The ids in the order of the file.
        vectors: float64 [N, D], finite, no zero rows.
    """

    name: str
    ids: list[str]
    vectors: Float64

    @property
    def norms(self) -> Float64:
        """Norm of each vector, float64 [N]."""
        return np.sqrt(np.einsum("nd,nd->n", self.vectors, self.vectors))

    def describe(self) -> str:
        """One OK line with the counts, and a warning where vectors are not of norm 1."""
        num, dim = self.vectors.shape
        lines = [f"OK {self.name}: {num:,} ids, each once, {dim} finite numbers each"]
        off = np.flatnonzero(np.abs(self.norms - 1) > _NORM_WITHIN)
        if len(off):
            first = off[0]
            lines.append(
                f"warning: {len(off):,} vectors do not have norm 1 (first: {self.ids[first]}, norm "
                f"{self.norms[first]:.4g}); the evaluator's cosine does not mind, a dot product would"
            )
        return "\n".join(lines)


def write_submission(path: str | Path, embeddings: Embeddings, ids: Sequence[str], decimals: int = 6) -> Submission:
    """Write a submission and read it back through the check; the file appears only if that passes.

    Args:
        path: The zip file.
        embeddings: They must hold every asked id; others are not written.
        ids: The asked ids; their order is the order of the file.
        decimals: Digits after the point, 3..17.

    Raises:
        UserError: Ids without an embedding, a width over 256, a vector that rounds to zero, a full disk.
    """
    if not 3 <= decimals <= 17:
        raise UserError(f"must be 3 to 17, not {decimals}", field="--decimals")
    if embeddings.dim > MAX_DIM:
        fix = f"vidsim ensemble {embeddings.name} --dim {MAX_DIM} --out ..."
        message = f"has width {embeddings.dim}, at most {MAX_DIM} are allowed"
        raise UserError(message, file=embeddings.name, fix=fix)
    rows = embeddings.rows_of(ids)
    template = "[" + ", ".join([f"%.{decimals}f"] * embeddings.dim) + "]"
    entry = zipfile.ZipInfo(RESULT_FILE, date_time=(1980, 1, 1, 0, 0, 0))  # the same input gives the same bytes
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive, archive.open(entry, "w", force_zip64=True) as file:
            for number, (video, row) in enumerate(zip(ids, rows.tolist(), strict=True)):
                before = ", " if number else "{"
                numbers = template % tuple(embeddings.vectors[row].tolist())
                file.write(f"{before}{json.dumps(video)}: {numbers}".encode())
            file.write(b"}\n")
        fix = "raise --decimals, or embed these videos again"
        return read_submission(temporary, ids, name=str(path), fix=fix)


def read_submission(
    path: str | Path, ids: Sequence[str], *, name: str | None = None, fix: str = _WRITE_IT
) -> Submission:
    """Read a submission and check all of it.

    Args:
        path: The zip file.
        ids: The asked ids.
        name: What to call the file in messages.
        fix: What to do about ids or vectors that are wrong.

    Raises:
        UserError: Not a zip with `result.json` alone at its root, too large, not strict JSON; ids that are
            missing, extra or double; vectors of other widths, over 256, not finite, zero. All that is wrong
            with ids and vectors is named together, with counts and the first five ids.
    """
    name = name or str(path)
    max_bytes = _SPARE_BYTES + len(ids) * (MAX_DIM + 16) * _BYTES_PER_NUMBER
    text = read_result_text(Path(path), name, max_bytes)
    faults: dict[str, list[str]] = {}
    found: dict[str, Float64] = {}
    dim: int | None = None
    for video, value in entries(text, name):
        fault, vector = _vector(value)
        if vector is not None:
            dim = dim or len(vector)
            if len(vector) != dim:
                fault = f"with another width than the first vector's {dim}"
        if video in found:
            fault = "more than once"
        if fault:
            faults.setdefault(fault, []).append(video)
        found[video] = vector if vector is not None else np.empty(0)
    asked = dict.fromkeys(ids)
    faults["missing"] = [video for video in asked if video not in found]
    faults["not asked for"] = [video for video in found if video not in asked]
    complaints = [f"{len(which):,} ids {fault}: {shown(which)}" for fault, which in faults.items() if which]
    if complaints or not found:
        raise UserError("; ".join(complaints) or "holds no ids", file=name, fix=fix)
    return Submission(name, list(found), np.stack(list(found.values())))


def score_submission(submission: Submission, pairs: Pairs) -> float:
    """Spearman of cosines and raw labels, as the organisers' evaluator computes it (no pair is skipped).

    Raises:
        UserError: Videos of the pairs that are not in it, too few pairs, constant labels, constant cosines.
    """
    check_pairs(pairs, pairs.name)
    videos = pairs.unique_ids()
    missing = [videos[i] for i in np.flatnonzero(positions(videos, submission.ids) < 0).tolist()]
    if missing:
        message = f"{len(missing):,} videos of the pairs are not in it: {shown(missing)}"
        raise UserError(message, file=submission.name)
    rows1, rows2 = positions(pairs.id1, submission.ids), positions(pairs.id2, submission.ids)
    cosines = pair_cosines(submission.vectors, rows1, rows2)
    check_predictions(cosines, submission.name)
    return spearman(cosines, pairs.score)


def rounding_effect(submission: Submission, embeddings: Embeddings) -> float:
    """Largest change of a cosine by the rounding of the numbers, over 10,000 random pairs."""
    rows = embeddings.rows_of(submission.ids)
    first, second = np.random.default_rng(0).integers(0, len(rows), (2, _NUM_SAMPLED_PAIRS))
    written = pair_cosines(submission.vectors, first, second)
    exact = pair_cosines(embeddings.vectors, rows[first], rows[second])
    return float(np.abs(written - exact).max())


def _vector(value: Any) -> tuple[str | None, Float64 | None]:
    """What is wrong with an id's value, and its numbers if they are numbers."""
    if not isinstance(value, list) or not value or not set(map(type, value)) <= {int, float}:
        return "without a list of numbers", None
    if len(value) > MAX_DIM:
        return f"with more than {MAX_DIM} numbers", None
    try:
        vector = np.array(value, dtype=np.float64)
    except OverflowError:
        return "with a number that is not finite", None
    if not np.isfinite(vector).all():  # 1e999 is JSON, and infinite
        return "with a number that is not finite", None
    # Squared numbers under or over the range of float64 make the cosine meaningless too.
    with np.errstate(over="ignore", under="ignore"):
        norm = float(vector @ vector)
    return (None if 0 < norm < np.inf else "with a vector of norm 0 or infinity"), vector


def _check_asked(pairs: Pairs, ids: Sequence[str], source: str) -> None:
    videos = pairs.unique_ids()
    missing = [videos[i] for i in np.flatnonzero(positions(videos, ids) < 0).tolist()]
    if missing:
        message = f"{len(missing):,} of its {len(videos):,} videos are not among the ids of {source}: {shown(missing)}"
        raise UserError(message, file=pairs.name, fix="give the pairs of these ids, or leave --pairs out")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim submit",
        description="Write a submission from embeddings, or check one: a zip with result.json, which\n"
        "gives every asked id once with at most 256 finite numbers. With --pairs, score it\n"
        "as the organisers' evaluator does.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim submit emb/fused --ids data/test_b --out result.zip\n"
        "  vidsim submit --check result.zip --ids test_ids.txt --pairs label.tsv",
    )
    parser.add_argument("embeddings", nargs="?", help="embeddings to write; with --check, to compare with")
    parser.add_argument(
        "--ids",
        required=True,
        help="asked ids: a data set folder, a folder of several, or a file with one a line",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", metavar="ZIP", help="write this submission")
    target.add_argument("--check", metavar="ZIP", help="check this submission")
    parser.add_argument("--decimals", type=int, default=6, help="digits after the point (%(default)s)")
    parser.add_argument("--pairs", help="labelled pairs: score it as the organisers' evaluator does")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write or check a submission."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.out and not args.embeddings:
        parser.error("--out needs the embeddings to write")
    ids = read_ids(args.ids)
    pairs = read_pairs(args.pairs) if args.pairs else None
    if pairs is not None:  # before anything is written
        check_pairs(pairs, args.pairs)
        _check_asked(pairs, ids, args.ids)
    embeddings = read_embeddings(args.embeddings) if args.embeddings else None
    if args.out and embeddings is not None:
        submission = write_submission(args.out, embeddings, ids, args.decimals)
        print(f"wrote {args.out}: {Path(args.out).stat().st_size:,} bytes")
    else:
        submission = read_submission(args.check, ids)
    print(submission.describe())
    if embeddings is not None:
        effect = rounding_effect(submission, embeddings)
        print(f"rounding changes a cosine by at most {effect:.1e} ({_NUM_SAMPLED_PAIRS:,} random pairs)")
        if effect > _ROUNDING_BELOW:
            print(f"warning: that is more than rounding; was it written from {args.embeddings}?")
    if pairs is not None:
        print(f"Spearman {score_submission(submission, pairs):.6f} on {len(pairs):,} pairs")
    return 0
