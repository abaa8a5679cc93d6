"""Does memory grow with the corpus? Walk through a small and a large data set, each in a fresh process.

Run: python -m tests.benchmarks.memory FOLDER  (what `bench.py` starts; prints one line of JSON)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_data import our_loader
from tests.benchmarks.measure import Report, memory_of_tree, peak_rss
from tests.benchmarks.workload import (
    NUM_TAGS,
    Sizes,
    make_collator,
    make_processor,
    make_tokenizer,
    write_videos,
)
from vidsim.data.corpus import open_corpus
from vidsim.data.tags import TagVocabulary
from vidsim.data.tokenization import load_tokenizer

_LOOK_EVERY = 50  # batches


def memory(
    report: Report, work: Path, sizes: Sizes, *, numbers: tuple[int, int], frame_dim: int, num_workers: int
) -> None:
    """Write two data sets and walk through each in a process of its own."""
    make_tokenizer(work / "tokenizer")
    found = {}
    for number in numbers:
        folder = work / f"memory-{number}"
        write_videos(folder, number, frame_dim, sizes.lengths)
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.memory",
            str(folder),
            "--tokenizer",
            str(work / "tokenizer/vocab.txt"),
        ]
        command += ["--batch_size", str(sizes.batch_size), "--num_workers", str(num_workers)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found[number] = json.loads(run.stdout.splitlines()[-1])
    small, large = (found[number] for number in numbers)
    facts: dict[str, Any] = {
        "frames": f"{frame_dim} wide, to keep the disk small; the rest as in the competition",
        "processes": f"the training's, without a model, with {num_workers} loader workers, and whatever it starts",
    }
    for number, values in found.items():
        facts |= {f"{number:,} videos, {name}": value for name, value in values.items()}
    for name in ("private growth, MB", "mapped files, MB"):
        facts[f"difference: {name}"] = round(large[name] - small[name], 1)
    report.facts["memory while walking through a data set once"] = facts


def walk(folder: Path, tokenizer: Any, batch_size: int, num_workers: int) -> dict[str, float]:
    """Open a data set as `vidsim pretrain` does and go through it once; the largest figures seen."""
    before = memory_of_tree()
    began = time.perf_counter()
    corpus = open_corpus([str(folder)], excluded=set(), held_out_fraction=0.02)
    rows = corpus.trainable[str(folder)]
    tags = TagVocabulary.build(corpus.videos, size=NUM_TAGS, min_count=1, rows=rows)
    sizes = Sizes(frame_dim=corpus.videos.streams["frames"], batch_size=batch_size)
    collator = make_collator(make_processor(sizes, tokenizer), tags)
    num_steps = len(rows) // batch_size
    first, seen = 0.0, dict.fromkeys(before, 0)
    for number, _ in enumerate(our_loader(corpus.videos, rows, collator, batch_size, num_workers, num_steps)):
        if number == 0:
            first = time.perf_counter() - began
            began = time.perf_counter()
        if number % _LOOK_EVERY == 0:
            seen = {kind: max(size, seen[kind]) for kind, size in memory_of_tree().items()}
    seconds = time.perf_counter() - began
    return {
        "private growth, MB": round((seen["private"] - before["private"]) / 1e6, 1),
        "mapped files, MB": round((seen["mapped"] - before["mapped"]) / 1e6, 1),
        "peak RSS of the main process, MB": round(peak_rss() / 1e6, 1),
        "first batch, s": round(first, 2),
        "videos/s": round((num_steps - 1) * batch_size / seconds, 1),
    }


def main() -> None:
    """Print what `walk` found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=0)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.tokenizer)
    print(json.dumps(walk(options.folder, tokenizer, options.batch_size, options.num_workers)))


if __name__ == "__main__":
    main()
