"""How the cost of our training step grows with frames, text, layers and batch, and loading with the corpus.

Run: python -m tests.benchmarks.scaling [--size base] [--precision fp32] [--rounds 3] [--device cpu]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.bench import SIZES
from tests.benchmarks.bench_data import our_loader
from tests.benchmarks.flops import num_tokens, step_flops
from tests.benchmarks.measure import interleave, machine_facts, machine_line, table
from tests.benchmarks.workload import (
    NUM_TAGS,
    Sizes,
    make_batches,
    make_collator,
    make_module,
    make_processor,
    make_tokenizer,
    make_trainer,
    write_videos,
)
from vidsim.engine.loop import Trainer

FRAMES = (8, 16, 24, 32)  # at 19 tokens
TOKENS = (5, 19, 33)  # at 17 frames
BATCHES = (8, 32, 128)
CORPORA = (1_000, 4_000, 16_000)
CORPUS_DIM = 64  # narrow frames: what grows with the number of rows is not their width


def length_cases(sizes: Sizes) -> dict[str, Sizes]:
    """Cases that share one module."""
    cases = {f"{count} frames": dataclasses.replace(sizes, lengths=f"19,{count}") for count in FRAMES}
    cases |= {f"{count} title tokens": dataclasses.replace(sizes, lengths=f"{count},17") for count in TOKENS}
    return cases | {f"batch of {count}": dataclasses.replace(sizes, batch_size=count) for count in BATCHES}


def layer_cases(sizes: Sizes) -> dict[str, Sizes]:
    """Cases with a module each."""
    counts = sorted({max(1, sizes.num_layers // 4), max(1, sizes.num_layers // 2), sizes.num_layers})
    return {f"{count} layers": dataclasses.replace(sizes, num_layers=count) for count in counts}


def steps(
    cases: dict[str, Sizes], folder: Path, tokenizer: Any, precision: str, rounds: int, *, one_module: bool
) -> list[list[str]]:
    """Rows: case, ms a step, videos/s, real tokens/s, model GFLOP a video."""
    trainer: Trainer | None = None
    functions: dict[str, Callable[[int], None]] = {}
    facts = {}
    for name, sizes in cases.items():
        if trainer is None or not one_module:
            trainer = make_trainer(make_module(sizes, tokenizer), precision)
        device = trainer.accelerator.device
        videos = write_videos(folder / name.replace(" ", "_"), sizes.batch_size, sizes.frame_dim, sizes.lengths)
        (batch,) = make_batches(videos, make_collator(make_processor(sizes, tokenizer)), sizes.batch_size, device)
        functions[name] = _step(trainer, batch)
        encoder: Any = trainer.module.encoder
        facts[name] = sizes.batch_size, num_tokens(batch), step_flops(encoder, batch, NUM_TAGS)
    assert trainer is not None
    times = interleave(functions, rounds, device=trainer.accelerator.device, min_seconds=0.1)
    rows = []
    for name, (count, tokens, flops) in facts.items():
        seconds = statistics.median(times[name])
        speeds = [f"{seconds * 1e3:,.1f}", f"{count / seconds:,.1f}", f"{tokens / seconds:,.0f}"]
        rows.append([name, *speeds, f"{tokens / count:.1f}", f"{flops / count / 1e9:.2f}"])
    return rows


def _step(trainer: Trainer, batch: dict[str, Any]) -> Callable[[int], None]:
    return lambda number: trainer.step([batch], 1.0)


def corpora(folder: Path, tokenizer: Any, num_batches: int = 25) -> list[list[str]]:
    """Rows: videos of the data set, seconds to the first batch, videos/s."""
    rows = []
    sizes = Sizes(frame_dim=CORPUS_DIM)
    collator = make_collator(make_processor(sizes, tokenizer))
    for count in CORPORA:
        videos = write_videos(folder / f"corpus_{count}", count, CORPUS_DIM, sizes.lengths)
        began = time.perf_counter()
        batches = iter(our_loader(videos, np.arange(count), collator, sizes.batch_size, 0, num_batches + 1))
        next(batches)
        first = time.perf_counter() - began
        began = time.perf_counter()
        for _ in batches:
            pass
        speed = num_batches * sizes.batch_size / (time.perf_counter() - began)
        rows.append([f"{count:,}", f"{first:.3f}", f"{speed:,.0f}"])
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    layers, hidden = SIZES[options.size]
    sizes = Sizes(num_layers=layers, hidden_size=hidden)
    print(machine_line(machine_facts(torch.device(options.device))))
    print(f"training step, {options.size}, {options.precision}, lengths of the competition where not said otherwise\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = make_tokenizer(folder / "tokenizer")
        rows = steps(length_cases(sizes), folder, tokenizer, options.precision, options.rounds, one_module=True)
        rows += steps(layer_cases(sizes), folder, tokenizer, options.precision, options.rounds, one_module=False)
        header = ["case", "ms a step", "videos/s", "real tokens/s", "real tokens a video", "model GFLOP a video"]
        print("\n".join(table(header, rows)))
        print(f"\nloading in the training process, frames {CORPUS_DIM} wide\n")
        print("\n".join(table(["videos", "first batch, s", "videos/s"], corpora(folder, tokenizer))))


if __name__ == "__main__":
    main()
