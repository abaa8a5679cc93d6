"""`vidsim embed CHECKPOINT DATA --out emb/a`: one vector a video, streamed to shards, resumable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from vidsim.common.arguments import ArgumentParser
from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file
from vidsim.common.progress import progress
from vidsim.data import schema
from vidsim.data.arrow import Videos, concat_videos, open_videos
from vidsim.data.collators import Batch, Processor, VideoRows, encode_rows, to_device
from vidsim.data.corpus import read_ids
from vidsim.data.embeddings import EmbeddingWriter
from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.source import checkpoint_of
from vidsim.modeling.build import check_streams_match, load_encoder


def main(argv: list[str] | None = None) -> int:
    """Entry point of `vidsim embed`."""
    options = _parser().parse_args(argv)
    checkpoint = checkpoint_of(Path(options.checkpoint))
    opened = [open_videos(folder) for folder in options.data]
    videos = concat_videos(opened) if len(opened) > 1 else opened[0]
    rows = videos.rows_of(read_ids(options.ids), asked_by=options.ids) if options.ids else np.arange(len(videos))
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise UserError("holds no model.safetensors", file=checkpoint, fix="name a folder below checkpoints/")
    metadata = {
        "model": sha256_file(weights),
        "data": videos.fingerprint(),
        "ids": sha256_file(options.ids) if options.ids else None,
        "vector": options.vector,
        "precision": options.precision,
        "normalized": True,
    }
    num_rows = embed(
        checkpoint,
        videos,
        rows,
        Path(options.out),
        metadata,
        vector=options.vector,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        precision=options.precision,
        overwrite=options.overwrite,
    )
    print(f"{options.out}: {num_rows:,} embeddings")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim embed",
        description="Embed every video of one or more data sets. A run that was cut off goes on where it stopped.",
        epilog="example: vidsim embed runs/finetune/base data/aiac/test_b --out emb/base",
    )
    parser.add_argument("checkpoint", help="checkpoint folder, or a run folder whose best checkpoint is taken")
    parser.add_argument("data", nargs="+", help="data set folder; several become one file of embeddings")
    parser.add_argument("--out", required=True, help="folder of the embeddings")
    parser.add_argument("--ids", help="only the videos of this text file, one id a line, in its order")
    parser.add_argument(
        "--vector",
        choices=("embedding", "hidden"),
        default="embedding",
        help="embedding: the trained projection; hidden: the masked mean of the last hidden states, for a checkpoint "
        "that was only pretrained (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="videos a batch (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=0, help="loader processes (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="start afresh instead of going on")
    return parser


class EmbedCollator:
    """Rows to a batch, nothing masked."""

    def __init__(self, processor: Processor) -> None:
        """Keep the processor of the checkpoint."""
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, object]]) -> Batch:
        """Encode."""
        return encode_rows(rows, self.processor)


@torch.inference_mode()
def embed(
    checkpoint: Path,
    videos: Videos,
    rows: np.ndarray,
    out: Path,
    metadata: dict[str, object],
    *,
    vector: str = "embedding",
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "fp32",
    overwrite: bool = False,
) -> int:
    """Embed rows of `videos` in their order.

    Args:
        checkpoint: Folder with the encoder and its processor.
        videos: Data sets.
        rows: int64 [n].
        out: Folder of the embeddings; whole shards that are there already are kept.
        metadata: Fingerprints; must equal those of the shards that are there.
        vector: `embedding` or `hidden`.
        batch_size: Videos a batch.
        num_workers: Loader processes.
        precision: `bf16` for autocast.
        overwrite: Remove earlier shards first.

    Returns:
        Number of embeddings in the folder.

    Raises:
        UserError: The data set does not fit the checkpoint, or a vector is not finite.
    """
    for name, value, minimum in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < minimum:
            raise UserError(f"{value} is below {minimum}", field=f"--{name}")
    encoder, processor = load_encoder(checkpoint)
    check_streams_match(encoder.config, videos.streams, checkpoint)
    accelerator = make_accelerator("bf16" if precision == "bf16" else "fp32")
    if accelerator.num_processes > 1:
        raise UserError("would be written by several processes at once", file=out, fix="start one process")
    encoder.to(accelerator.device).eval()
    dim = encoder.config.embedding_dim if vector == "embedding" else encoder.config.hidden_size
    with EmbeddingWriter(out, dim, metadata, num_rows=len(rows), overwrite=overwrite) as writer:
        done = writer.num_done
        if done:
            print(f"{out}: {done:,} of {len(rows):,} are there already", file=sys.stderr)
        # A run that goes on forms the batches of the straight run, whose padding decides the last bits.
        starts = range(done // batch_size * batch_size, len(rows) if done < len(rows) else 0, batch_size)
        batches = [[(0, int(row)) for row in rows[start : start + batch_size]] for start in starts]
        loader = DataLoader(
            VideoRows(videos), batch_sampler=batches, collate_fn=EmbedCollator(processor), num_workers=num_workers
        )
        shown = progress(loader, total=len(batches), desc="embed", unit="batches")
        for start, batch in zip(starts, shown, strict=True):
            with accelerator.autocast():
                output = encoder(**encoder.inputs_of(to_device(batch, accelerator.device)))
            vectors = output.embedding if vector == "embedding" else encoder.hidden_mean(output)
            normalized = torch.nn.functional.normalize(vectors.float(), dim=-1)
            new = slice(max(0, done - start), None)
            writer.write(batch[schema.ROW_IDS][new], normalized[new].cpu().numpy())
        return writer.num_done


if __name__ == "__main__":
    sys.exit(run_entry(main))
