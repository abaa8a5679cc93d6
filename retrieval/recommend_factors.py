"""`vidsim factors`: vectors of videos from who watched what, beside those of their content.

The matrix of users and videos, each user's row divided by a power of its length, is cut to its first singular
directions. The product of two videos' vectors is then about how often they were watched by the same users, where a user
who watches everything says less: what the co-watch graph holds, smoothed. Videos nobody has watched yet have the
vector 0, so that the vectors of their content, joined to it with a weight, decide alone. Lengths mean something:
the more a video is watched the longer. The metadata says so, and `vidsim recommend` takes products, not cosines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import scipy.sparse
from scipy.sparse.linalg import svds

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import require_new, sha256_file
from vidsim.data.cowatch_sessions import VIDEO, SessionColumns, read_sessions
from vidsim.data.embeddings import read_embeddings, write_embeddings
from vidsim.retrieval.recommend_histories import Histories, read_histories
from vidsim.retrieval.vectors import SIMILARITY, unit_vectors

Float32 = npt.NDArray[np.float32]
_SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class FactorsConfig:
    """How watches become vectors.

    Attributes:
        dim: Singular directions that are kept.
        user_power: A user's row is divided by (number of videos) to this power; 0: every watch says the same.
        content_weight: What a cosine of 1 between two videos' contents adds to their product.
    """

    dim: int = 256
    user_power: float = 0.5
    content_weight: float = 1.0

    def validate(self) -> None:
        """Refuse values outside their range."""
        if self.dim < 1:
            raise UserError(f"must be at least 1, not {self.dim}", field="--dim")
        for name, value in (("user_power", self.user_power), ("content_weight", self.content_weight)):
            if not 0 <= value < float("inf"):
                raise UserError(f"{value:g} is below 0 or not finite", field=f"--{name}")


def factors(histories: Histories, num_videos: int, config: FactorsConfig) -> Float32:
    """Vectors of videos from histories, float32 [num_videos, dim]; zero for what nobody watched.

    Args:
        histories: Of any users; only what counts is looked at.
        num_videos: N.
        config: `dim` and `user_power`.

    Raises:
        UserError: Not as many users or videos as dimensions.
    """
    most = min(len(histories), num_videos) - 1
    if config.dim > most:
        what = f"{config.dim} dimensions from {len(histories):,} users and {num_videos:,} videos"
        fix = f"at most {most}" if most >= 1 else "give watches of more users or videos"
        raise UserError(what, field="--dim", fix=fix)
    lengths = np.maximum(histories.num_liked(), 1).astype(np.float64)
    user = np.repeat(np.arange(len(histories)), np.diff(histories.starts))[histories.counts]
    video = histories.videos[histories.counts]
    weights = lengths[user] ** -config.user_power
    matrix = scipy.sparse.csr_array((weights, (user, video)), shape=(len(histories), num_videos))
    start = np.random.default_rng(_SEED).normal(size=min(matrix.shape))
    _, values, rows = svds(matrix, k=config.dim, v0=start)
    order = np.argsort(-values, kind="stable")
    vectors = (rows[order] * values[order, None]).T
    # The sign of a direction is arbitrary: its largest entry is positive.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(config.dim)]
    vectors *= np.where(largest < 0, -1.0, 1.0)
    vectors[np.bincount(video, minlength=num_videos) == 0] = 0
    return np.ascontiguousarray(vectors, dtype=np.float32)


def with_content(collaborative: Float32, content: Float32, weight: float) -> Float32:
    """Both beside each other, so that products add up: that of the watches + weight * cosine of the contents.

    Args:
        collaborative: float32 [N, D].
        content: Unit vectors float32 [N, E].
        weight: At least 0.
    """
    return np.concatenate([collaborative, np.float32(np.sqrt(weight)) * content], axis=1)


def watched_ids(sources: list[Path], columns: SessionColumns) -> list[str]:
    """All videos that occur, sorted."""
    found: set[str] = set()
    for source in sources:
        for table, _ in read_sessions(source, columns):
            found.update(pc.unique(table[VIDEO]).to_pylist())
    return sorted(found)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim factors",
        description="Write embeddings of videos made from who watched what, to recommend by (an index would lose "
        "their lengths). With --content, the vectors of the videos' content stand beside them, which also speak for "
        "videos nobody has watched yet.",
        epilog="example: vidsim factors train.npz --content runs/finetune/cowatch/embeddings --out emb/factors && "
        "vidsim recommend emb/factors train.npz --out recommendations.parquet",
    )
    defaults = FactorsConfig()
    parser.add_argument("histories", type=Path, nargs="+", help="watches: Parquet, CSV, TSV or npz")
    parser.add_argument("--out", type=Path, required=True, help="embeddings folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace embeddings that are there")
    parser.add_argument("--content", type=Path, help="embeddings of all videos from their content")
    parser.add_argument("--dim", type=int, default=defaults.dim, help="directions of the watches (%(default)s)")
    parser.add_argument("--content_weight", type=float, default=defaults.content_weight, help="default %(default)s")
    parser.add_argument("--user_power", type=float, default=defaults.user_power, help="1: long histories say little")
    names = SessionColumns()
    parser.add_argument("--user", default=names.user, help="column of the user (%(default)s)")
    parser.add_argument("--video", default=names.video, help="column of the video (%(default)s)")
    parser.add_argument("--rating", help="column of the rating")
    parser.add_argument("--min_rating", type=float, help="leave out what is rated lower")
    parser.add_argument("--drop_unknown", action="store_true", help="leave out watched videos without content")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the embeddings and say what they are made of."""
    args = _parser().parse_args(argv)
    if (args.rating is None) != (args.min_rating is None):
        raise UserError("--rating and --min_rating go together", field="--min_rating", fix="give both or none")
    config = FactorsConfig(dim=args.dim, user_power=args.user_power, content_weight=args.content_weight)
    config.validate()
    require_new(args.out, overwrite=args.overwrite)
    columns = SessionColumns(
        user=args.user, video=args.video, time=None, rating=args.rating, min_rating=args.min_rating
    )
    content = read_embeddings(args.content) if args.content is not None else None
    ids = watched_ids(args.histories, columns) if content is None else content.ids
    histories = read_histories(args.histories, columns, ids, drop_unknown=args.drop_unknown)
    vectors = factors(histories, len(ids), config)
    num_fresh = int((~vectors.any(axis=1)).sum())
    metadata: dict[str, Any] = {
        "model": {"factors": vars(config), "content": None if content is None else content.metadata.get("model")},
        "data": {source.name: sha256_file(source) for source in args.histories},
        "normalized": False,
        SIMILARITY: "dot",
    }
    if content is not None:
        vectors = with_content(vectors, unit_vectors(content.vectors, ids), config.content_weight)
    write_embeddings(args.out, ids, vectors, metadata)
    if histories.num_unknown:
        print(f"left out: {histories.num_unknown:,} watches of videos without content")
    said = f"; {num_fresh:,} are known by their content alone" if content is not None else ""
    print(f"{args.out}: {len(ids):,} videos from {len(histories):,} users{said}")
    return 0
