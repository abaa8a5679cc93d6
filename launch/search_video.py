"""`vidsim search-video`: the videos most like new ones, from their files: convert, embed and search in one go."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import read_json, sha256_file
from vidsim.data.convert.table import main as convert_table
from vidsim.data.embeddings import read_embeddings
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.embed import main as embed
from vidsim.modeling.config import VidsimConfig
from vidsim.retrieval.search import add_output_options, print_similar
from vidsim.retrieval.searchable import open_source, require_same_model
from vidsim.retrieval.vectors import unit_vectors

_WIDTHS = {"embedding": "embedding_dim", "hidden": "hidden_size"}


def main(argv: list[str] | None = None) -> int:
    """Print the most similar videos of each row of a table."""
    args = _parser().parse_args(argv)
    if args.k < 1:
        raise UserError(f"must be at least 1, not {args.k}", field="-k")
    searched = open_source(args.source)
    checkpoint = checkpoint_of(Path(args.checkpoint))
    config = read_json(checkpoint / "config.json")
    width = (config if args.vector == "embedding" else config.get("text_config", {})).get(_WIDTHS[args.vector])
    if config.get("model_type") != VidsimConfig.model_type or not isinstance(width, int):
        raise UserError("is not the encoder of a video model", file=checkpoint, fix="name a run of `vidsim finetune`")
    model = sha256_file(checkpoint / "model.safetensors")
    require_same_model(searched, args.source, dim=width, model=model, other=str(checkpoint))
    if config.get("streams") and not (args.features or args.frames or args.stream):
        what = f"the checkpoint reads {', '.join(config['streams'])}, nothing of it is given"
        raise UserError(what, file=checkpoint, field="--features", fix="give --features, --frames or --stream")
    with tempfile.TemporaryDirectory(prefix="vidsim-") as folder:
        data, out = f"{folder}/data", f"{folder}/emb"
        with contextlib.redirect_stdout(sys.stderr):
            convert_table([args.rows, "--out", data, *_passed_on(args)])
            embed([str(checkpoint), data, "--out", out, "--vector", args.vector])
        embeddings = read_embeddings(out)
    print_similar(searched, embeddings.ids, unit_vectors(embeddings.vectors, embeddings.ids), args)
    return 0


def _passed_on(args: argparse.Namespace) -> list[str]:
    """The options about columns and features, as `vidsim convert table` takes them."""
    names = ("format", "id", "title", "feature_id", "features", "frames", "frame_files", "extractor")
    given = [(f"--{name}", getattr(args, name)) for name in names] + [("--stream", value) for value in args.stream]
    words = [word for name, value in given if value is not None for word in (name, value)]
    if args.asr:
        words += ["--asr", *args.asr]
    return [*words, "--allow_missing_features"] if args.allow_missing_features else words


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim search-video",
        description="Print the videos most like new ones, which are given as a table, as for `vidsim convert table`,\n"
        "and features or pictures of their frames.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim search-video index/mine new.jsonl --checkpoint runs/finetune/mine \\\n"
        "      --title name --asr transcript --features new_features/\n"
        "  vidsim search-video index/mine new.jsonl --checkpoint runs/finetune/mine \\\n"
        "      --frames frames.zip --extractor efficientnet-lite0",
    )
    parser.add_argument("source", help="embeddings, index folder, or URL/collections/NAME of Qdrant")
    parser.add_argument("rows", metavar="ROWS", help="JSONL, CSV, TSV or Parquet file, a row for each new video")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="what the embeddings were made with")
    parser.add_argument("--vector", choices=tuple(_WIDTHS), default="embedding", help="as in `vidsim embed`")
    columns = parser.add_argument_group("columns, as in `vidsim convert table`; say what was said there")
    columns.add_argument("--format", help="format of ROWS (by default its suffix says)")
    columns.add_argument("--id", help="video id (default: id)")
    columns.add_argument("--title", help="title (default: title where there is one)")
    columns.add_argument("--asr", nargs="+", metavar="COLUMN", help="speech or further text (default: asr)")
    columns.add_argument("--feature_id", metavar="COLUMN", help="id that features go by (default: the id)")
    features = parser.add_argument_group("features, as in `vidsim convert table`")
    features.add_argument("--features", metavar="PATH", help="arrays of frame features")
    features.add_argument("--frames", metavar="PATH", help="pictures of frames, a folder or a zip file")
    features.add_argument("--frame_files", choices=("strip", "picture"), help="what a file ID.png is")
    features.add_argument("--allow_missing_features", action="store_true", help="also rows without features")
    features.add_argument("--extractor", help="what makes features of pictures")
    features.add_argument("--stream", action="append", default=[], metavar="NAME=PATH", help="further stream")
    add_output_options(parser)
    return parser
