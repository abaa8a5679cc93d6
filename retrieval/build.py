"""`vidsim index`: make an index of embeddings, or add to one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings, read_embeddings, repeated, shown
from vidsim.data.ids import read_ids
from vidsim.retrieval import qdrant
from vidsim.retrieval.backends import KINDS, faiss_module
from vidsim.retrieval.conditions import read_metadata
from vidsim.retrieval.index import NUM_CANDIDATES, VectorIndex
from vidsim.retrieval.index_files import is_index
from vidsim.retrieval.qdrant import QdrantIndex
from vidsim.retrieval.searchable import require_same_model
from vidsim.retrieval.vectors import require_cosine, unit_vectors


def join_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of several files one after the other.

    Raises:
        UserError: Another width or another model than the first, an id in more than one, or vectors for dot products.
    """
    first = require_cosine(parts[0])
    for part in map(require_cosine, parts[1:]):
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


def change_index(args: argparse.Namespace) -> VectorIndex | QdrantIndex:
    """Remove from and add to an index; one in a folder stays as it was if anything is wrong.

    Raises:
        UserError: There is no index, or see `VectorIndex` and `QdrantIndex`.
    """
    index = qdrant.open_index(args.out) if qdrant.is_address(args.out) else VectorIndex.load(args.out)
    embeddings = join_embeddings([read_embeddings(path) for path in args.embeddings]) if args.embeddings else None
    metadata = None
    if embeddings is not None:
        model = embeddings.metadata.get("model")
        require_same_model(index, args.out, dim=embeddings.dim, model=model, other=embeddings.name)
        metadata = read_metadata(args.metadata, embeddings.ids) if args.metadata else None
    if args.remove:
        index.remove(read_ids(args.remove))
    if embeddings is not None:
        index.add(embeddings.ids, embeddings.vectors, metadata)
    if isinstance(index, VectorIndex):
        index.save(args.out)
    return index


def make_index(args: argparse.Namespace) -> VectorIndex | QdrantIndex:
    """Make the index that the arguments ask for.

    Raises:
        UserError: There is an index in the way, or see `VectorIndex` and `qdrant.create_index`.
    """
    if is_index(args.out) and not args.overwrite:
        fix = "give --add, --remove or --overwrite, or another --out"
        raise UserError("there is an index already", file=args.out, fix=fix)
    embeddings = join_embeddings([read_embeddings(path) for path in args.embeddings])
    metadata = read_metadata(args.metadata, embeddings.ids) if args.metadata else None
    model = embeddings.metadata.get("model")
    if qdrant.is_address(args.out):
        unit_vectors(embeddings.vectors, embeddings.ids)  # before a collection is made or replaced
        columns = metadata.schema if metadata is not None else None
        made = qdrant.create_index(args.out, embeddings.dim, columns, model=model, overwrite=args.overwrite)
        made.add(embeddings.ids, embeddings.vectors, metadata)
        return made
    index = VectorIndex.build(
        embeddings.ids,
        embeddings.vectors,
        kind=args.kind or "exact",
        refine=args.refine,
        metadata=metadata,
        num_candidates=args.num_candidates or NUM_CANDIDATES,
        info={"model": model},
    )
    index.save(args.out)
    return index


def _check(args: argparse.Namespace) -> None:
    """Refuse arguments that do not go together, before anything is read."""
    settings = args.kind or args.refine or args.num_candidates
    is_remote = qdrant.is_address(args.out)
    if args.num_candidates is not None and args.num_candidates < 1:
        raise UserError(f"must be at least 1, not {args.num_candidates}", field="--num_candidates")
    if not is_remote:
        faiss_module()
    if is_remote and settings:
        raise UserError("is a matter of the server", field="--out", fix="leave --kind and its like away")
    if (args.add or args.remove) and (settings or args.overwrite):
        name = "--add" if args.add else "--remove"
        raise UserError("keeps the settings of the index", field=name, fix="leave the other options away")
    if args.remove and args.embeddings and not args.add:
        raise UserError("embeddings are added with --add only", field="--remove", fix="give --add too")
    if not args.embeddings and (args.add or not args.remove):
        raise UserError("there are no embeddings", fix="name embeddings folders or files")
    if args.metadata and not args.embeddings:
        raise UserError("goes with embeddings", field="--metadata", fix="leave it away")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim index",
        description="Make an index of embeddings for `vidsim search` and `vidsim related`, add to it, remove from it.\n"
        "  exact    every cosine; fast enough up to a million videos\n"
        "  compact  4 bits a dimension: 128 bytes for a vector of 256\n"
        "  large    8 bits a dimension and a graph of neighbours: looks at some thousand videos only\n"
        "Needs faiss: pip install 'vidsim[retrieval]'. A collection of a Qdrant server, URL/collections/NAME, is an\n"
        "index as well: pip install 'vidsim[qdrant]'.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim index emb/fused --out index/fused --kind compact --refine --metadata videos.csv\n"
        "  vidsim index emb/new --out index/fused --add --metadata new.csv\n"
        "  vidsim index --out index/fused --remove gone.txt\n"
        "  vidsim index emb/fused --out http://localhost:6333/collections/fused",
    )
    parser.add_argument("embeddings", nargs="*", help="embeddings folders or files, of one model")
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder or collection of the index")
    parser.add_argument("--kind", choices=KINDS, help="see above (exact)")
    parser.add_argument("--refine", action="store_true", help="keep the vectors too, and order by true cosines")
    parser.add_argument("--metadata", metavar="FILE", help="Parquet, CSV or TSV with a column id, to search by")
    breadth = f"large: how many a search keeps; more find more, and take longer ({NUM_CANDIDATES})"
    parser.add_argument("--num_candidates", type=int, help=breadth)
    parser.add_argument("--add", action="store_true", help="add to the index in --out")
    parser.add_argument("--remove", metavar="IDS", help="first remove these videos from it: a file with one id a line")
    parser.add_argument("--overwrite", action="store_true", help="replace the index in --out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Make or change an index and say how large it is."""
    args = _parser().parse_args(argv)
    _check(args)
    index = change_index(args) if args.add or args.remove else make_index(args)
    text = f"{args.out}: {len(index):,} videos, {index.dim} dimensions"
    if isinstance(index, VectorIndex):
        num_bytes = sum(path.stat().st_size for path in Path(args.out).iterdir())
        text += f", {index.kind}{' + vectors' if index.refines and index.kind != 'exact' else ''}, {num_bytes:,} bytes"
    print(text)
    return 0
