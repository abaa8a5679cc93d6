"""`vidsim index`: make an index of embeddings, or add to one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings, read_embeddings, repeated, shown
from vidsim.retrieval.backends import KINDS, faiss_module
from vidsim.retrieval.conditions import read_metadata
from vidsim.retrieval.index import NUM_PROBES, VectorIndex
from vidsim.retrieval.index_files import is_index


def join_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of several files one after the other.

    Raises:
        UserError: Another width or another model than the first, or an id in more than one.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.dim != first.dim:
            raise UserError(f"is of width {part.dim}, {first.name} of {first.dim}", file=part.name)
        models = [one.metadata.get("model") for one in (first, part)]
        if None not in models and models[0] != models[1]:
            raise UserError(f"is of another model than {first.name}", file=part.name, fix="cosines would mean nothing")
    if len(parts) == 1:
        return first
    ids = [video for part in parts for video in part.ids]
    if twice := repeated(ids):
        raise UserError(f"{len(twice):,} ids are in more than one of the embeddings: {shown(twice)}")
    return Embeddings(ids, np.concatenate([part.vectors for part in parts]), first.metadata, first.name)


def make_index(args: argparse.Namespace) -> VectorIndex:
    """Make or enlarge the index that the arguments ask for and write it.

    Raises:
        UserError: See `VectorIndex`; or there is an index in the way, or none to add to.
    """
    faiss_module()  # missing? said before anything is read
    out = Path(args.out)
    if args.add and (args.overwrite or args.kind or args.refine or args.num_lists or args.num_probes):
        raise UserError("keeps the settings of the index", field="--add", fix="leave the other options away")
    if is_index(out) and not (args.add or args.overwrite):
        raise UserError("there is an index already", file=out, fix="give --add or --overwrite, or another --out")
    index = VectorIndex.load(out) if args.add else None
    embeddings = join_embeddings([read_embeddings(path) for path in args.embeddings])
    metadata = read_metadata(args.metadata, embeddings.ids) if args.metadata else None
    info: dict[str, Any] = {"model": embeddings.metadata.get("model")}
    if index is None:
        index = VectorIndex.build(
            embeddings.ids,
            embeddings.vectors,
            kind=args.kind or "exact",
            refine=args.refine,
            metadata=metadata,
            num_lists=args.num_lists,
            num_probes=args.num_probes or NUM_PROBES,
            info=info,
        )
    else:
        models = (index.info.get("model"), info["model"])
        if None not in models and models[0] != models[1]:
            raise UserError(f"is of another model than {embeddings.name}", file=out, fix="make a new index")
        index.add(embeddings.ids, embeddings.vectors, metadata)
    index.save(out)
    return index


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim index",
        description="Make an index of embeddings for `vidsim search` and `vidsim related`, or add to one.\n"
        "  exact    every cosine; fast enough up to a million videos\n"
        "  compact  4 bits a dimension: 128 bytes for a vector of 256\n"
        "  large    8 bits a dimension, looks at the nearest lists only\n"
        "Needs faiss: pip install 'vidsim[retrieval]'.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim index emb/fused --out index/fused --kind compact --refine --metadata videos.csv\n"
        "  vidsim index emb/new --out index/fused --add --metadata new.csv",
    )
    parser.add_argument("embeddings", nargs="+", help="embeddings folders or files, of one model")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the index goes")
    parser.add_argument("--kind", choices=KINDS, help="see above (exact)")
    parser.add_argument("--refine", action="store_true", help="keep the vectors too, and order by true cosines")
    parser.add_argument("--metadata", metavar="FILE", help="Parquet, CSV or TSV with a column id, to search by")
    parser.add_argument("--num_lists", type=int, help="lists of a large index (twice the root of the videos)")
    parser.add_argument("--num_probes", type=int, help=f"lists of a large index to look into ({NUM_PROBES})")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--add", action="store_true", help="add to the index in --out")
    change.add_argument("--overwrite", action="store_true", help="replace the index in --out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Make an index and say how large it is."""
    args = _parser().parse_args(argv)
    index = make_index(args)
    num_bytes = sum(path.stat().st_size for path in Path(args.out).iterdir())
    print(
        f"{args.out}: {len(index):,} videos, {index.dim} dimensions, {index.kind}"
        f"{' + vectors' if index.refines and index.kind != 'exact' else ''}, {num_bytes:,} bytes"
    )
    return 0
