"""Does each pretraining objective help? VTC, VTC + MLM, VTC + MLM + MFM and no pretraining, over several seeds.

Generates a competition corpus, converts it, and for each seed and each set of objectives pretrains a small encoder
(without the videos of validation pairs), finetunes it on the training pairs (video-disjoint) and scores it on hidden
test pairs. Finished runs are kept, so a run that was cut off goes on. Writes DIR/objectives.json and objectives.md.

Run: python benchmarks/objectives.py --out DIR [--seeds 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vidsim.common.entry import run_entry
from vidsim.common.files import read_json, write_json
from vidsim.data import splits, synthetic
from vidsim.data.arrow import concat_videos, open_videos
from vidsim.data.convert import run as convert
from vidsim.data.embeddings import read_embeddings
from vidsim.data.pairs import read_pairs
from vidsim.engine.source import checkpoint_of
from vidsim.ensemble.score import cosines_of_pairs
from vidsim.finetune.embed import embed
from vidsim.finetune.run import main as finetune
from vidsim.modeling.metrics import spearman
from vidsim.pretrain.run import main as pretrain

NUM_TAGS = 500
VTC = {"weight": 1.0, "loss": "sampled_softmax", "num_negatives": 0}  # at this size BCE learns too slowly
MLM = {"weight": 1 / 3.75}
MFM = {"weight": 1 / 9, "normalize": True, "temperature": 0.1}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "VTC": {"vtc": VTC, "mlm": None, "mfm": None},
    "VTC + MLM": {"vtc": VTC, "mlm": MLM, "mfm": None},
    "VTC + MLM + MFM": {"vtc": VTC, "mlm": MLM, "mfm": MFM},
}
UNTRAINED = "no pretraining"


def main(argv: list[str] | None = None) -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num_videos", type=int, default=6000)
    parser.add_argument("--num_pairs", type=int, default=800)
    parser.add_argument("--num_epochs", type=float, default=8)
    options = parser.parse_args(argv)
    out: Path = options.out
    corpus = out / "corpus"
    make_corpus(corpus, out / "source", options)
    results: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name in (UNTRAINED, *OBJECTIVES):
            results.setdefault(name, []).append(one_run(out, corpus, name, seed, options.num_epochs))
            settings = {**vars(options), "out": str(out)}
            write_json(out / "objectives.json", {"options": settings, "test_spearman": results})
            print(f"seed {seed}  {name:<16} test Spearman {results[name][-1]:.4f}", flush=True)
    table = markdown(results)
    (out / "objectives.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def make_corpus(corpus: Path, source: Path, options: argparse.Namespace) -> None:
    """Generate, convert, split."""
    if (corpus / "split").is_dir():
        return
    sizes = ["--num_videos", str(options.num_videos), "--num_pairs", str(options.num_pairs), "--num_test_pairs", "2000"]
    synthetic.main(["--out", str(source), *sizes, "--frame_dim", "256", "--num_tags", str(NUM_TAGS), "--seed", "7"])
    convert.main(["aiac", str(source), "--out", str(corpus), "--frame_dim", "256"])
    splits.main([str(corpus / "pairs.tsv"), "--out", str(corpus / "split"), "--fractions", "0.8", "0.1", "0.1"])


def one_run(out: Path, corpus: Path, name: str, seed: int, num_epochs: float) -> float:
    """Pretrain, finetune, embed the hidden test videos, score."""
    folder = out / "runs" / f"{name.replace(' ', '')}-{seed}"
    if (folder / "score.json").is_file():
        return float(read_json(folder / "score.json")["test_spearman"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(pretrain_recipe(corpus, name, seed, num_epochs)))
    (folder / "finetune.yaml").write_text(yaml.safe_dump(finetune_recipe(corpus, seed)))
    shared = ["--resume", "--output_dir"]
    run_command(pretrain, ["--config", str(folder / "pretrain.yaml"), *shared, str(folder / "pretrain")])
    start = ["--init_from", str(folder / "pretrain")]
    run_command(finetune, ["--config", str(folder / "finetune.yaml"), *start, *shared, str(folder / "finetune")])
    videos = concat_videos([open_videos(corpus / "test_a"), open_videos(corpus / "test_b")])
    vectors = folder / "embeddings"
    embed(checkpoint_of(folder / "finetune"), videos, np.arange(len(videos)), vectors, {"seed": seed}, overwrite=True)
    embeddings = read_embeddings(vectors)
    cosines, scores = [], []
    for part in ("a", "b"):
        pairs = read_pairs(out / "source" / "hidden" / f"test_{part}_pairs.tsv")
        cosines.append(cosines_of_pairs(embeddings, pairs))
        scores.append(pairs.score)
    value = spearman(np.concatenate(cosines), np.concatenate(scores))
    write_json(folder / "score.json", {"test_spearman": value})
    return value


def run_command(command: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Run a training; one that was asked to stop ends the benchmark too."""
    if command(arguments) != 0:
        raise KeyboardInterrupt


def pretrain_recipe(corpus: Path, name: str, seed: int, num_epochs: float) -> dict[str, Any]:
    """A 2-layer encoder of width 128."""
    return {
        "seed": seed,
        "data": {
            "stages": [{"data": [str(corpus / "pointwise"), str(corpus / "pairwise")], "num_epochs": num_epochs}],
            "exclude": [str(corpus / "split/holdout_ids.txt")],
            "tags": str(corpus / "tags.txt"),
            "num_tags": NUM_TAGS,
            "held_out_fraction": 0.02,
        },
        "tokenizer": {"vocab_size": 4000},
        "model": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "embedding_dim": 128, "max_frames": 16},
        "objectives": OBJECTIVES.get(name, OBJECTIVES["VTC"]),
        "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 2e-3},
        "loop": {"micro_batch_size": 64, "log_every_steps": 100, "max_steps": 0 if name == UNTRAINED else None},
    }


def finetune_recipe(corpus: Path, seed: int) -> dict[str, Any]:
    """Published loss, strict split."""
    return {
        "seed": seed,
        "init_from": "set by the command line",
        "data": {
            "videos": [str(corpus / "pairwise")],
            "pairs": str(corpus / "split/train.tsv"),
            "validation": str(corpus / "split/validation.tsv"),
        },
        "num_epochs": 8,
        "optimizer": {"learning_rate": 1e-4, "head_learning_rate": 5e-4},
        "loop": {"micro_batch_size": 32, "log_every_steps": 50, "eval_every_steps": 20},
    }


def markdown(results: dict[str, list[float]]) -> str:
    """One row a set of objectives: mean ± sd over seeds, and the differences seed by seed."""
    lines = ["| pretraining | test Spearman, mean ± sd | seeds | to the row above, seed by seed |", "|---|---|---|---|"]
    previous: list[float] | None = None
    for name, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        differences = [value - before for value, before in zip(values, previous or [], strict=False)]
        gains = ", ".join(f"{difference:+.4f}" for difference in differences)
        singles = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {name} | {statistics.mean(values):.4f} ± {spread:.4f} | {singles} | {gains} |")
        previous = values
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_entry(main))
