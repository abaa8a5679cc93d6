"""Where the time of a training step goes, ours and the published way's, by kind of work.

Run: python -m tests.benchmarks.profile_step [--size base] [--precision fp32] [--steps 2] [--device cpu]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.bench import SIZES
from tests.benchmarks.bench_model import Steps
from tests.benchmarks.measure import machine_facts, machine_line, table
from tests.benchmarks.workload import (
    NUM_TAGS,
    VOCAB_SIZE,
    Sizes,
    make_batches,
    make_collator,
    make_processor,
    make_tokenizer,
    write_videos,
)
from tests.benchmarks.yardstick import pad_batch
from vidsim.data.collators import VideoRows

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear", "aten::_addmm_activation", "mkldnn::_linear_pointwise")
# First match wins; the products are told apart by their shapes.
_KINDS = {
    "attention": ("scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax", "varlen", "flash"),
    "losses without their products": ("log_softmax", "nll_loss", "softplus", "binary_cross_entropy", "log_sigmoid"),
    "LayerNorm": ("layer_norm",),
    "gelu": ("gelu",),
    "dropout": ("dropout", "bernoulli"),
    "gradient norm, clipping": ("norm", "_foreach_"),
    "embedding tables": ("embedding",),
    "copies, casts, gathers": (
        "copy_",
        "aten::cat",
        "index",
        "gather",
        "scatter",
        "clone",
        "fill_",
        "zero_",
        "nonzero",
    ),
}
_OTHER = "the rest (element by element, the profiler itself)"


def kind_of(event: Any, sizes: Sizes) -> str:
    """The row of the table that an operation belongs to."""
    if any(name.startswith("Optimizer.step") for name in _ancestors(event)):
        return "optimizer"
    if event.name in _PRODUCTS:
        numbers = {number for shape in event.input_shapes for number in shape if isinstance(number, int)}
        if VOCAB_SIZE in numbers:
            return "products: MLM decoder"
        if NUM_TAGS in numbers:
            return "products: tag head"
        if sizes.frame_dim in numbers:
            return "products: frames (projection, MFM head, choice)"
        return "products: encoder layers, small heads"
    return next((kind for kind, parts in _KINDS.items() if any(part in event.name for part in parts)), _OTHER)


def _ancestors(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def profiled(step: Callable[[int], None], num_steps: int, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Seconds of one step by kind of work."""
    step(0)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, record_shapes=True) as found:
        for number in range(num_steps):
            step(number + 1)
    times: dict[str, float] = defaultdict(float)
    for event in found.events():
        micros = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        times[kind_of(event, sizes)] += micros / 1e6 / num_steps
    return dict(times)


def lines(times: dict[str, dict[str, float]]) -> list[str]:
    """The table: rows by our time, a column of milliseconds and one of shares for each way."""
    totals = {way: sum(parts.values()) for way, parts in times.items()}
    first = next(iter(times))
    kinds = sorted(set().union(*times.values()), key=lambda kind: -times[first].get(kind, 0.0))
    header = ["work", *(f"{way}, {what}" for way in times for what in ("ms", "share"))]
    rows = []
    for kind in kinds:
        cells = [(parts.get(kind, 0.0), totals[way]) for way, parts in times.items()]
        rows.append([kind, *(text for part, whole in cells for text in (f"{part * 1e3:,.1f}", f"{part / whole:.1%}"))])
    rows.append(["together", *(text for whole in totals.values() for text in (f"{whole * 1e3:,.1f}", ""))])
    return table(header, rows)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    device = torch.device(options.device)
    layers, hidden = SIZES[options.size]
    sizes = Sizes(num_layers=layers, hidden_size=hidden, batch_size=options.batch_size)
    print(machine_line(machine_facts(device)))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(Path(folder) / "tokenizer")
        videos = write_videos(Path(folder) / "videos", 4 * sizes.batch_size, sizes.frame_dim, sizes.lengths)
        processor = make_processor(sizes, tokenizer)
        collator = make_collator(processor)
        rows = [VideoRows(videos)[0, row] for row in range(sizes.batch_size)]
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            collator(rows)
            seconds.append(time.perf_counter() - began)
        batches = make_batches(videos, collator, sizes.batch_size, device)
        plain = make_batches(videos, make_collator(processor, masked=False), sizes.batch_size, torch.device("cpu"))
        steps = Steps(sizes, tokenizer, batches, [pad_batch(batch, NUM_TAGS).to(device) for batch in plain], device)
    functions = steps.functions()
    ours, published = f"ours {options.precision}", "published fp32"
    times = {name: profiled(functions[name], options.steps, sizes, device) for name in (ours, published)}
    print("\n".join(lines(times)))
    print(f"\ncollating a batch, beside the training: {statistics.median(seconds) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
