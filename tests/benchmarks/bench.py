"""Ours against the published way, in turn, in one run: what `make bench` does.

Items: training, inference, loading, conversion, ensemble, scoring, memory. Writes FILE.json (everything) and FILE.md
(the tables). A ratio is of one round, so what slows the machine for a while slows both sides; speeds alone are only
worth something on a quiet machine.

Run: python -m tests.benchmarks.bench [--quick] [--only training,inference] [--size large] [--out runs/bench/bench.json]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

ITEMS = ("training", "inference", "loading", "conversion", "ensemble", "scoring", "memory")
SIZES = {"base": (12, 768), "large": (24, 1024), "tiny": (2, 128)}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, one round: does it run?")
    add("--only", default=",".join(ITEMS), help="items, with commas between them (default: all)")
    add(
        "--rounds",
        type=int,
        default=5,
        help="rounds of training and inference; others take at most so many (default 5)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    add(
        "--size", choices=tuple(SIZES), default="base", help="base: 12 layers of 768; large: 24 of 1024; tiny: 2 of 128"
    )
    add("--layers", type=int, help="instead of the size's")
    add("--hidden", type=int, help="instead of the size's")
    add("--batch_size", type=int, default=32)
    add("--lengths", default="competition", help="competition, full (33 tokens, 32 frames), or TOKENS,FRAMES")
    add("--frame_dim", type=int, default=1536)
    add("--num_workers", type=int, default=2, help="of the loaders")
    add("--memory_dim", type=int, default=64, help="width of the frames of the memory item's data sets")
    add("--memory_videos", default="20000,200000", help="sizes of the memory item's two data sets")
    add("--work", type=Path, help="folder for temporary data (default: the system's)")
    add("--out", type=Path, default=Path("runs/bench/bench.json"))
    options = parser.parse_args(argv)
    options.items = options.only.split(",")
    if unknown := set(options.items) - set(ITEMS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(ITEMS)}")
    if options.quick:
        options.size, options.rounds, options.memory_videos = "tiny", 1, "1000,4000"
    return options


def main(argv: list[str] | None = None) -> None:
    """Run the items and print the tables."""
    options = parse(argv)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Imported here: accelerate looks at the environment when it is imported.
    import torch

    from tests.benchmarks import bench_data, bench_model
    from tests.benchmarks.measure import Report, machine_facts, machine_line
    from tests.benchmarks.memory import memory
    from tests.benchmarks.workload import Sizes

    use_gpu = options.device == "cuda" or (options.device is None and torch.cuda.is_available())
    device = torch.device("cuda" if use_gpu else "cpu")
    layers, hidden = SIZES[options.size]
    sizes = Sizes(
        num_layers=options.layers or layers,
        hidden_size=options.hidden or hidden,
        frame_dim=options.frame_dim,
        batch_size=options.batch_size,
        lengths=options.lengths,
    )
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("out", "work")}
    report = Report(machine=machine_facts(device), settings=settings | vars(sizes))
    print(machine_line(report.machine), flush=True)
    quick, rounds, few = options.quick, options.rounds, min(options.rounds, 3)
    small, large = map(int, options.memory_videos.split(","))
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        for item in options.items:
            began = time.monotonic()
            match item:
                case "training":
                    bench_model.training(report, work, sizes, device, rounds=rounds, num_batches=2 if quick else 4)
                case "inference":
                    bench_model.inference(report, work, sizes, device, rounds=rounds, num_batches=2 if quick else 4)
                case "loading":
                    count = 400 if quick else 4000
                    bench_data.loading(
                        report, work, sizes, rounds=few, num_videos=count, num_workers=options.num_workers
                    )
                case "conversion":
                    bench_data.conversion(report, work, sizes, rounds=few, num_videos=200 if quick else 4000)
                case "ensemble":
                    count = 600 if quick else bench_data.NUM_TEST_VIDEOS
                    bench_data.ensemble(report, rounds=few, num_videos=count)
                case "scoring":
                    videos = 2000 if quick else bench_data.NUM_TEST_VIDEOS
                    pairs = 1000 if quick else bench_data.NUM_PAIRS
                    bench_data.scoring(report, rounds=few, num_videos=videos, num_pairs=pairs)
                case "memory":
                    workers = options.num_workers
                    memory(
                        report, work, sizes, numbers=(small, large), frame_dim=options.memory_dim, num_workers=workers
                    )
            print(f"{item}: {time.monotonic() - began:.0f} s", flush=True)
    report.machine["load_at_end"] = round(os.getloadavg()[0], 2)
    report.write(options.out)
    print(f"\n{report.markdown()}\n{options.out}, {options.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
