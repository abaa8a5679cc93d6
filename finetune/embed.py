"""`vidsim embed CHECKPOINT DATA --out emb/a`: one vector a video, streamed to shards, resumable.

The rows are taken in windows. Inside a window they are sorted by the lengths of text and streams, so that a batch
holds little padding, cut into batches, and the batches are dealt to the processes. The first process puts the window
back into the order of the input and writes it as one shard. What a batch holds depends neither on the number of
processes nor on where an earlier run was cut off, and so neither do the vectors.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import Sampler

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.common.entry import leave, run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file
from vidsim.common.progress import progress
from vidsim.data import schema
from vidsim.data.arrow import Videos, open_all
from vidsim.data.collators import Batch, Processor, VideoRows, encode_rows, to_device
from vidsim.data.embeddings import EmbeddingWriter
from vidsim.data.ids import read_ids
from vidsim.data.loading import step_batches
from vidsim.data.samplers import RowKey
from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.source import checkpoint_of
from vidsim.modeling.build import check_streams_match, load_encoder
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.processor import VideoTextProcessor

WINDOW: Final = 8192
"""Rows of a window and of a shard; a run that is killed loses at most these."""
_BYTES_PER_TOKEN = 3  # of a Chinese character, one token; and not far from half an English word


def main(argv: list[str] | None = None) -> int:
    """Entry point of `vidsim embed`."""
    options = _parser().parse_args(argv)
    checkpoint = checkpoint_of(Path(options.checkpoint))
    videos = open_all(options.data)
    ids = read_ids(options.ids) if options.ids else None
    rows = np.arange(len(videos)) if ids is None else videos.rows_of(ids, asked_by=options.ids)
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise UserError("holds no model.safetensors", file=checkpoint, fix="name a folder below checkpoints/")
    metadata = {
        "model": sha256_file(weights),
        "data": videos.fingerprint(),
        "ids": None if ids is None else hashlib.sha256("\n".join(ids).encode()).hexdigest(),
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
        window=WINDOW,
    )
    if num_rows is not None:
        print(f"{options.out}: {num_rows:,} embeddings")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim embed",
        description="Embed every video of one or more data sets. A run that was cut off goes on where it\n"
        "stopped. Several processes share the work; the result does not depend on their number.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vidsim embed runs/finetune/base data/aiac/test_b --out emb/base\n"
        "  accelerate launch --num_processes 4 finetune/embed.py runs/finetune/base data/aiac/test_b --out emb/base",
    )
    parser.add_argument("checkpoint", help="checkpoint folder, or a run folder whose best checkpoint is taken")
    parser.add_argument("data", nargs="+", help="data set folder; several become one file of embeddings")
    parser.add_argument("--out", required=True, help="folder of the embeddings")
    parser.add_argument("--ids", help="only these videos, in this order: a file with one id a line, or a data set")
    parser.add_argument(
        "--vector",
        choices=("embedding", "hidden"),
        default="embedding",
        help="embedding: the trained projection; hidden: the masked mean of the last hidden states, for a checkpoint "
        "that was only pretrained (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="videos a batch (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=0, help="threads that make batches (default: %(default)s)")
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


def estimated_lengths(videos: Videos, processor: VideoTextProcessor) -> npt.NDArray[np.int64]:
    """About how long the text of each video is in tokens, and its streams in vectors, int64 [len(videos), 2].

    Vectors are counted exactly; text is measured in bytes, without reading it.
    """
    lengths = np.zeros((len(videos), 2), np.int64)
    texts = {schema.TITLE: processor.max_title_tokens, schema.ASR: processor.max_asr_tokens}
    for column, most in texts.items() if processor.use_text else ():
        num_bytes = pc.binary_length(videos.column(column)).to_numpy()
        lengths[:, 0] += np.minimum(-(-num_bytes // _BYTES_PER_TOKEN), most)
    for name, sizes in processor.streams.items():
        if name != schema.FRAMES or processor.use_frames:
            counts = videos.column(schema.count_column(name)).to_numpy()
            lengths[:, 1] += np.minimum(counts, sizes["max_length"])
    return lengths


class SortedWindows(Sampler[list[RowKey]]):
    """The batches of one rank: windows of rows, each sorted by length and dealt to the ranks batch by batch.

    Text and streams are padded one by one, so both lengths should be alike in a batch: a window is cut into bands of
    like text length, and each band is sorted by its streams.

    Args:
        rows: Rows to go through, int64 [n].
        lengths: Of text and streams of every row of the data set, int64 [N, 2].
        batch_size: Rows of a batch.
        window: Rows of a window.
        start: First of the n positions that is wanted: where the first window begins.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        *,
        batch_size: int,
        window: int = WINDOW,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Only keep the numbers; every window is sorted when its turn comes."""
        self.rows = rows
        self.lengths = lengths
        self.batch_size = batch_size
        self.window = window
        self.rank = rank
        self.world_size = world_size
        self.starts = range(start, len(rows), window)

    def order(self, start: int) -> npt.NDArray[np.int64]:
        """Positions of the window that begins at `start`, the longest first, int64 [at most window]."""
        text, vectors = self.lengths[self.rows[start : start + self.window]].T
        num_bands = max(1, round((len(text) / self.batch_size) ** 0.5))
        bands = np.array_split(np.argsort(-text, kind="stable"), num_bands)
        return np.concatenate([band[np.argsort(-vectors[band], kind="stable")] for band in bands]) + start

    def own_parts(self, start: int) -> list[slice]:
        """The stretches of `order(start)` that are the batches of this rank."""
        size = min(self.window, len(self.rows) - start)
        step = self.batch_size * self.world_size
        return [slice(i, min(i + self.batch_size, size)) for i in range(self.rank * self.batch_size, size, step)]

    def __iter__(self) -> Iterator[list[RowKey]]:
        """Yield the keys of each batch."""
        for start in self.starts:
            ordered = self.rows[self.order(start)]
            for part in self.own_parts(start):
                yield [(0, row) for row in ordered[part].tolist()]

    def __len__(self) -> int:
        """Number of batches of this rank."""
        if not self.starts:
            return 0
        whole, last = len(self.starts) - 1, self.starts[-1]
        return whole * len(self.own_parts(self.starts[0])) + len(self.own_parts(last))


def prepare_for_inference(encoder: VideoTextEncoder, device: torch.device, precision: str) -> VideoTextEncoder:
    """Put an encoder on a device, in eval mode.

    Under bf16 the weights of the text encoder's linear layers are rounded now: autocast would do the same in every
    batch, to the same bits.
    """
    encoder.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its overloads
    if precision == "bf16":
        for module in encoder.text.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    return encoder


@torch.inference_mode()
def batch_vectors(
    encoder: VideoTextEncoder, batch: Batch, precision: str = "fp32", vector: str = "embedding"
) -> torch.Tensor:
    """Vectors of one batch, float32 [B, D] with rows of length 1, on the encoder's device.

    Args:
        encoder: From `prepare_for_inference`.
        batch: From `EmbedCollator`, on any device.
        precision: `bf16` for autocast, or `fp32`.
        vector: `embedding` or `hidden`.
    """
    device = encoder.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = encoder(**encoder.inputs_of(to_device(batch, device)))
    vectors = output.embedding if vector == "embedding" else encoder.hidden_mean(output)
    return nn.functional.normalize(vectors.float(), dim=-1)


def embed(
    checkpoint: Path,
    videos: Videos,
    rows: npt.NDArray[np.int64],
    out: Path,
    metadata: dict[str, object],
    *,
    vector: str = "embedding",
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "fp32",
    overwrite: bool = False,
    window: int = WINDOW,
) -> int | None:
    """Embed rows of `videos` in their order. Collective: the first process writes.

    Args:
        checkpoint: Folder with the encoder and its processor.
        videos: Data sets.
        rows: int64 [n].
        out: Folder of the embeddings; whole shards that are there already are kept.
        metadata: Fingerprints; must equal those of the shards that are there.
        vector: `embedding` or `hidden`.
        batch_size: Videos a batch.
        num_workers: Threads of each process that prepare batches.
        precision: `bf16` for autocast.
        overwrite: Remove earlier shards first.
        window: Rows that are sorted together, shared between the processes and written as one shard.

    Returns:
        Number of embeddings in the folder; None on all processes but the first.

    Raises:
        UserError: The data set does not fit the checkpoint, or a vector is not finite.
    """
    counts = {"batch_size": batch_size, "num_workers": num_workers}
    require_at_least(counts, {"batch_size": 1, "num_workers": 0}, prefix="--")
    accelerator = make_accelerator("bf16" if precision == "bf16" else "fp32")
    encoder, processor = load_encoder(checkpoint)
    check_streams_match(encoder.config, videos.streams, checkpoint)
    prepare_for_inference(encoder, accelerator.device, precision)
    dim = encoder.config.embedding_dim if vector == "embedding" else encoder.config.hidden_size
    writer = None
    if accelerator.is_main_process:
        writer = EmbeddingWriter(out, dim, metadata, window, num_rows=len(rows), overwrite=overwrite)
    done = broadcast_object_list([writer.num_done if writer else 0])[0]
    if done and writer:
        print(f"{out}: {done:,} of {len(rows):,} are there already", file=sys.stderr)
    sampler = SortedWindows(
        rows,
        estimated_lengths(videos, processor),
        batch_size=batch_size,
        window=window,
        start=done,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    loader = step_batches(VideoRows(videos), sampler, EmbedCollator(processor), num_workers=num_workers)
    batches = progress(loader, total=len(sampler), desc="embed", unit="batches", enabled=writer is not None)
    computed = (batch_vectors(encoder, batch, precision, vector) for batch in batches)
    with writer or contextlib.nullcontext():
        for positions, vectors in window_vectors(sampler, computed, dim, accelerator):
            if writer:
                writer.write(_ids(videos, rows[positions]), vectors)
    return writer.num_done if writer else None


def window_vectors(
    sampler: SortedWindows, computed: Iterator[torch.Tensor], dim: int, accelerator: Accelerator
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Bring the vectors of all ranks together, window by window. Collective.

    Args:
        sampler: Of this rank's batches.
        computed: Vectors float32 [b, D] of each of these batches.
        dim: Width D.
        accelerator: Of the run.

    Yields:
        Which of the sampler's rows, and their vectors float32 [at most window, D] in the order of the input.
    """
    for start in sampler.starts:
        order = sampler.order(start)
        block = torch.zeros(len(order), dim, device=accelerator.device)
        for part in sampler.own_parts(start):
            block[part] = next(computed)
        # Each row was computed by one rank and is zero on the others.
        block = accelerator.reduce(block, "sum")
        restored = np.empty(block.shape, np.float32)
        restored[order - start] = block.cpu().numpy()
        yield slice(start, start + len(order)), restored
    next(computed, None)  # ends the progress bar and the loader's threads


def _ids(videos: Videos, rows: npt.NDArray[np.int64]) -> list[str]:
    return [row[schema.ID] for row in videos.read(rows.tolist(), [schema.ID])]


if __name__ == "__main__":
    leave(run_entry(main))
