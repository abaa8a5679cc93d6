"""`vidsim embed-features`: embeddings of any videos from their precomputed features, with trained towers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file
from vidsim.common.progress import progress
from vidsim.data.embedding_shards import read_index
from vidsim.data.embeddings import EmbeddingWriter
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.streams import open_streams, stream_options
from vidsim.modeling.model_files import WEIGHTS_FILE
from vidsim.modeling.towers import FusionTowers


def embed_features(
    model: Path, sources: dict[str, str], ids: str | None, out: Path, *, batch_size: int, overwrite: bool = False
) -> int:
    """Write an embeddings folder; a run that was cut off goes on.

    Args:
        model: Run folder of `vidsim finetune-cowatch`, or a checkpoint in it.
        sources: Stream name to features, the streams the towers were trained on; see `open_features`.
        ids: Ids of the rows of `.npy` arrays; None: row numbers.
        out: Folder to write.
        batch_size: Videos a forward pass.
        overwrite: Remove what an earlier run wrote first.

    Returns:
        Number of videos.

    Raises:
        UserError: No towers there, a stream is missing, unknown or of another width, or `out` holds embeddings of
            another model, other features or other ids.
    """
    folder = checkpoint_of(model)
    try:
        towers = FusionTowers.load(folder).eval()
    except ValueError as error:
        raise UserError(str(error), file=model, fix="name a run of `vidsim finetune-cowatch`") from error
    features = open_streams(sources, ids, towers.config.streams)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    towers = towers.to(device)
    metadata = {
        "model": sha256_file(folder / WEIGHTS_FILE),
        "data": {name: fingerprint(Path(source)) for name, source in sources.items()},
        "ids": hashlib.sha256("\n".join(features.ids).encode()).hexdigest(),
        "normalized": True,
    }
    count, dim = len(features.ids), towers.config.embedding_dim
    with EmbeddingWriter(out, dim, metadata, num_rows=count, overwrite=overwrite) as writer, torch.no_grad():
        for start in progress(range(writer.num_done, count, batch_size), desc="embedding", unit="batches"):
            videos = np.arange(start, min(start + batch_size, count))
            batch = {name: torch.from_numpy(vectors).to(device) for name, vectors in features.take(videos).items()}
            writer.write([features.ids[video] for video in videos], towers(**batch).cpu().numpy())
    return count


def fingerprint(source: Path) -> str:
    """SHA-256 of a features file, or over the shards of an embeddings folder."""
    if source.is_file():
        return sha256_file(source)
    shards = [sha256_file(source / shard["file"]) for shard in read_index(source)["shards"]]
    return hashlib.sha256("\n".join(shards).encode()).hexdigest()


def main(argv: list[str] | None = None) -> int:
    """`vidsim embed-features`."""
    parser = ArgumentParser(
        prog="vidsim embed-features",
        description="Write embeddings of videos from their features, with a model of `vidsim finetune-cowatch`.",
        epilog="example: vidsim embed-features runs/finetune/cowatch --features visual=new_visual.npy audio=audio.npy "
        "--ids new_ids.txt --out runs/emb/new",
    )
    parser.add_argument("model", type=Path, help="run folder or checkpoint")
    parser.add_argument("--features", nargs="+", required=True, metavar="NAME=PATH", help=".npy arrays or embeddings")
    parser.add_argument("--ids", help="ids of the rows of .npy arrays, one on each line (default: row numbers)")
    parser.add_argument("--out", type=Path, required=True, help="embeddings folder to write")
    parser.add_argument("--overwrite", action="store_true", help="start afresh instead of going on")
    parser.add_argument("--batch_size", type=int, default=4096, help="videos a forward pass (default %(default)s)")
    args = parser.parse_args(argv)
    require_at_least(vars(args), {"batch_size": 1}, "--")
    sources = stream_options(args.features)
    count = embed_features(
        args.model, sources, args.ids, args.out, batch_size=args.batch_size, overwrite=args.overwrite
    )
    print(f"wrote {args.out}: {count:,} embeddings")
    return 0
