"""`vidsim tag`: the most probable tags of any videos from their precomputed features, with a trained tagger."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, require_new
from vidsim.common.progress import progress
from vidsim.data.feature_streams import FeatureStreams
from vidsim.data.tags import TagVocabulary
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.annotation import TAGS_FILE
from vidsim.finetune.streams import open_streams, stream_options
from vidsim.modeling.mixture_of_experts import Tagger


def load_tagger(model: Path) -> tuple[Tagger, TagVocabulary]:
    """The tagger of a run or checkpoint, on the GPU where there is one, and the tags that it knows.

    Raises:
        UserError: No tagger there, or tags that are not its own.
    """
    folder = checkpoint_of(model)
    try:
        tagger = Tagger.load(folder).eval()
    except ValueError as error:
        raise UserError(str(error), file=model, fix="name a run of `vidsim finetune-annotation`") from error
    vocabulary = TagVocabulary.from_file(folder / TAGS_FILE)
    if vocabulary.size != tagger.config.num_tags:
        what = f"holds {vocabulary.size:,} tags, the model knows {tagger.config.num_tags:,}"
        raise UserError(what, file=folder / TAGS_FILE, fix="take the file of the same checkpoint")
    return tagger.to("cuda" if torch.cuda.is_available() else "cpu"), vocabulary


@torch.no_grad()
def write_tags(
    tagger: Tagger, vocabulary: TagVocabulary, features: FeatureStreams, out: Path, *, k: int, batch_size: int
) -> int:
    """Write a line for each video, in the order of the features: `{"id", "tags", "probabilities"}`, best first.

    Args:
        tagger: The model.
        vocabulary: Its tags.
        features: Of the videos.
        out: JSONL file, written whole or not at all.
        k: Tags a video, at most.
        batch_size: Videos a forward pass.

    Returns:
        Number of videos.
    """
    device = next(tagger.parameters()).device
    count, k = len(features.ids), min(k, vocabulary.size)
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for start in progress(range(0, count, batch_size), desc="tagging", unit="batches"):
            videos = np.arange(start, min(start + batch_size, count))
            batch = {name: torch.from_numpy(vectors).to(device) for name, vectors in features.take(videos).items()}
            values, numbers = tagger(**batch).double().sigmoid().topk(k, dim=1)
            for video, shares, tags in zip(videos.tolist(), values.tolist(), numbers.tolist(), strict=True):
                row = {
                    "id": features.ids[video],
                    "tags": [vocabulary.tags[tag] for tag in tags],
                    "probabilities": [float(f"{share:.6g}") for share in shares],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def main(argv: list[str] | None = None) -> int:
    """`vidsim tag`."""
    parser = ArgumentParser(
        prog="vidsim tag",
        description="Write the most probable tags of videos from their features, with a model of "
        "`vidsim finetune-annotation`.",
        epilog="example: vidsim tag runs/finetune/annotation --features visual=new_visual.npy ours=runs/emb/new "
        "--ids new_ids.txt --out tags.jsonl -k 20",
    )
    parser.add_argument("model", type=Path, help="run folder or checkpoint")
    parser.add_argument("--features", nargs="+", required=True, metavar="NAME=PATH", help=".npy arrays or embeddings")
    parser.add_argument("--ids", help="ids of the rows of .npy arrays, one on each line (default: row numbers)")
    parser.add_argument("--batch_size", type=int, default=512, help="videos a forward pass (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument("-k", "--k", type=int, default=20, help="tags a video (default %(default)s)")
    args = parser.parse_args(argv)
    require_at_least(vars(args), {"k": 1, "batch_size": 1}, "--")
    require_new(args.out, overwrite=args.overwrite)
    tagger, vocabulary = load_tagger(args.model)
    wanted = {name: dim for name, (dim, _) in tagger.config.streams.items()}
    features = open_streams(stream_options(args.features), args.ids, wanted)
    count = write_tags(tagger, vocabulary, features, args.out, k=args.k, batch_size=args.batch_size)
    print(f"wrote {args.out}: {count:,} videos, {min(args.k, vocabulary.size)} of {vocabulary.size:,} tags each")
    return 0
