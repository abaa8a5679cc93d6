"""Learn from what is watched together: `accelerate launch finetune/cowatch.py --config RECIPE.yaml [--field value …]`.

Reads top to bottom: settings, graph and features, network, loop, embeddings. The loop itself is `engine/loop.py`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file
from vidsim.data.collators import to_device
from vidsim.data.cowatch_features import FeatureStreams, on_features, open_features
from vidsim.data.cowatch_graph import INDEX_FILE, CowatchGraph, read_graph
from vidsim.data.embeddings import write_embeddings
from vidsim.engine.accelerator import banner_lines
from vidsim.engine.balance import BalanceConfig, LossBalancer
from vidsim.engine.ema import ExponentialMovingAverage
from vidsim.engine.gather import map_rows
from vidsim.engine.loop import Hooks, Stage, Trainer, TrainResult, describe_result, train
from vidsim.engine.optimizer import describe as describe_groups
from vidsim.engine.optimizer import make_optimizer, parameter_groups
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.seeding import seed_everything
from vidsim.engine.session import run_session
from vidsim.engine.settings import parse_settings
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.batches import epoch_steps, task_batches
from vidsim.finetune.cowatch_config import CowatchConfig
from vidsim.finetune.cowatch_evaluation import RelatedQueries, Vectors, evaluate_related, related_queries
from vidsim.finetune.tasks.cowatch import CowatchModule, TripletCollator, TripletRows
from vidsim.modeling.towers import WEIGHTS_FILE, FusionTowers, TowersConfig

EMBEDDINGS = "embeddings"
EXAMPLES = (
    "vidsim finetune-cowatch --graph data/cowatch --features '{visual: visual.npy, audio: audio.npy}' --ids ids.txt",
    "vidsim finetune-cowatch --config runs/finetune/cowatch/config.yaml --resume",
)


@dataclass(frozen=True, kw_only=True)
class CowatchData:
    """Graph and features of a run, in one numbering of the videos."""

    features: FeatureStreams
    graph: CowatchGraph
    queries: dict[str, RelatedQueries]

    def lines(self) -> list[str]:
        """What there is, for people."""
        num_eval = int(self.graph.is_eval.sum())
        lines = [
            f"videos: {len(self.graph.ids) - num_eval:,} train, {num_eval:,} eval; "
            f"streams: {', '.join(f'{name} {dim}' for name, dim in self.features.dims.items())}",
            f"edges: {len(self.graph.training_edges()):,} of {len(self.graph.weights):,} join two training videos",
        ]
        for name, part in self.queries.items():
            what = f"{len(part.queries):,} queries, {len(part.candidates):,} candidates"
            lines.append(f"{name}: {what}, {len(part.rows) / len(part.queries):.1f} relevant each")
        return lines


def main(argv: list[str] | None = None) -> int:
    """Entry point of the script and of `vidsim finetune-cowatch`."""
    settings = parse_settings(
        CowatchConfig,
        argv,
        prog="vidsim finetune-cowatch",
        description="Learn an embedding of precomputed features from the graph of videos watched one after another.",
        examples=EXAMPLES,
    )
    config: CowatchConfig = settings.config
    config.validate()
    data = open_data(config)
    if config.dry_run:
        print("\n".join([*data.lines(), f"steps: {num_steps(config, data, 1):,} on one process"]))
        return 0
    return run_session(config, config.output_dir, settings, partial(finetune_and_write, config, data))


def finetune_and_write(
    config: CowatchConfig, data: CowatchData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> TrainResult:
    """Train, then embed all videos with the best towers. Collective."""
    result = finetune(config, data, run, reporter, accelerator)
    if not result.interrupted:
        write_all(config, data, run, reporter, accelerator)
    return result


def open_data(config: CowatchConfig) -> CowatchData:
    """Read graph and features; whatever does not fit is named before any device is touched."""
    graph = read_graph(config.graph)
    features = open_features(config.features, config.ids)
    graph = on_features(graph, features)
    training = graph.training_edges()
    if len(np.unique(graph.edges[:, training])) < 3:
        what = f"{len(training):,} of its {len(graph.weights):,} edges join two training videos"
        fix = "make it from more sessions, with a lower --min_weight or a smaller --eval_fraction"
        raise UserError(f"{what}: too few to learn from", file=config.graph, fix=fix)
    queries = related_queries(graph, config.max_queries, config.seed)
    if not queries:
        fix = "make it from more sessions, or with another --eval_fraction"
        raise UserError("no edge joins a training and an eval video: nothing to evaluate", file=config.graph, fix=fix)
    return CowatchData(features=features, graph=graph, queries=queries)


def num_steps(config: CowatchConfig, data: CowatchData, world_size: int) -> int:
    """Optimizer steps of all epochs."""
    return epoch_steps(len(data.graph.training_edges()), config.num_epochs, config.loop, world_size)


def build_towers(config: CowatchConfig, data: CowatchData) -> FusionTowers:
    """Fresh towers, whose inputs are scaled by the training videos' statistics."""
    task = config.task
    towers = FusionTowers(
        TowersConfig(
            streams=data.features.dims,
            fusion=task.fusion,
            hidden=tuple(task.hidden),
            embedding_dim=task.embedding_dim,
            dropout=task.dropout,
        )
    )
    statistics = data.features.statistics(np.flatnonzero(~data.graph.is_eval))
    means = {name: torch.from_numpy(mean) for name, (mean, _) in statistics.items()}
    towers.fit_inputs(means, {name: torch.from_numpy(deviation) for name, (_, deviation) in statistics.items()})
    return towers


def finetune(
    config: CowatchConfig, data: CowatchData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> TrainResult:
    """Build everything and train. Collective."""
    seed_everything(config.seed)
    neighbours = data.graph.neighbours(data.graph.training_edges())
    module = CowatchModule(build_towers(config, data), config.task, neighbours).to(accelerator.device)
    groups = parameter_groups(module, config.optimizer, lambda name: False, lambda name: None, 1)
    reporter.note([*banner_lines(accelerator), *describe_groups(groups), *data.lines(), *floors(config, data)])

    def evaluate() -> dict[str, float]:
        vectors = embed_all(module.towers, data.features, config.loop.eval_batch_size, accelerator)
        try:
            found = evaluate_related(vectors, data.queries, config.k)
        except ValueError as error:
            raise UserError(f"step {trainer.progress.step}: the model cannot be scored: {error}") from error
        return {f"validation/{name}": value for name, value in found.items()}

    total = num_steps(config, data, accelerator.num_processes)
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=make_optimizer(groups, config.optimizer, accelerator.device),
        balancer=LossBalancer(BalanceConfig(), module.weights, []),
        config=config.loop,
        hooks=Hooks(
            evaluate=evaluate,
            export=lambda folder, metrics: module.towers.save(folder),
            select=f"validation/ndcg@{config.k}",
        ),
        reporter=reporter,
        checkpoints=run.checkpoints,
        seed=config.seed,
        ema=ExponentialMovingAverage(module, config.ema) if config.ema else None,
    )
    if config.resume and trainer.resume():
        reporter.note([f"resumed at step {trainer.progress.step:,}"])
    rows, collator = TripletRows(data.graph, config.seed), TripletCollator(data.features)
    stage = Stage(
        num_steps=total,
        schedule=config.schedule,
        batches=partial(task_batches, rows, len(rows), collator, config.loop, accelerator, config.seed, total),
    )
    result = train(trainer, [stage], to_device)
    reporter.note([describe_result(result), f"best checkpoint: {run.checkpoints / 'best'}"])
    accelerator.wait_for_everyone()
    return result


def floors(config: CowatchConfig, data: CowatchData) -> list[str]:
    """What needs no learning: the features as they are, and the videos with most edges to training videos."""
    everything = np.arange(len(data.graph.ids))
    parts = []
    for name, (mean, deviation) in data.features.statistics(np.flatnonzero(~data.graph.is_eval)).items():
        vectors = (data.features.take(everything)[name] - mean) / np.where(deviation == 0, 1, deviation)
        parts.append(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
    training = data.graph.edges[:, data.graph.training_edges()]
    popularity = np.bincount(training.reshape(-1), minlength=len(everything)).astype(np.float32)[:, None]
    scores = {
        "untrained features": evaluate_related(np.concatenate(parts, axis=1), data.queries, config.k),
        "popularity in training": evaluate_related(
            popularity, data.queries, config.k, query_vectors=np.ones_like(popularity)
        ),
    }
    return [
        f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in found.items()) for name, found in scores.items()
    ]


def embed_all(towers: FusionTowers, features: FeatureStreams, batch_size: int, accelerator: Accelerator) -> Vectors:
    """Embeddings of all videos, float32 [V, E]. Collective."""

    def encode(videos: np.ndarray) -> Tensor:
        batch = {name: torch.from_numpy(vectors) for name, vectors in features.take(videos).items()}
        embedding: Tensor = towers(**to_device(batch, accelerator.device))
        return embedding

    width = towers.config.embedding_dim
    return map_rows(encode, len(features.ids), width, batch_size=batch_size, accelerator=accelerator)


def write_all(
    config: CowatchConfig, data: CowatchData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> None:
    """Write the embeddings of all videos by the best checkpoint. Collective."""
    folder = checkpoint_of(run.path)
    towers = FusionTowers.load(folder).to(accelerator.device).eval()
    vectors = embed_all(towers, data.features, config.loop.eval_batch_size, accelerator)
    if accelerator.is_main_process:
        metadata = {
            "model": sha256_file(folder / WEIGHTS_FILE),
            "data": sha256_file(Path(config.graph) / INDEX_FILE),
            "normalized": True,
        }
        write_embeddings(run.path / EMBEDDINGS, data.features.ids, vectors, metadata)
    reporter.note([f"embeddings of {len(vectors):,} videos: {run.path / EMBEDDINGS}"])
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    sys.exit(run_entry(main))
