"""Learn from what is watched together: `accelerate launch finetune/cowatch.py --config RECIPE.yaml [--field value …]`.

Reads top to bottom: settings, graph and features, network, loop, embeddings and their evaluation. The loop itself is
`engine/loop.py`. Training triplets hold training videos alone, the validation videos choose the checkpoint, and the
eval videos are looked at once, by that checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from vidsim.common.entry import leave, run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file, write_json
from vidsim.data.collators import to_device
from vidsim.data.cowatch_graph import (
    EVAL,
    INDEX_FILE,
    PARTS,
    TRAIN,
    VALIDATION,
    CowatchGraph,
    Integers,
    on_videos,
    read_graph,
)
from vidsim.data.cowatch_queries import RelatedQueries, related_queries
from vidsim.data.embeddings import write_embeddings
from vidsim.engine.accelerator import banner_lines
from vidsim.engine.balance import BalanceConfig, LossBalancer
from vidsim.engine.ema import ExponentialMovingAverage
from vidsim.engine.loop import Hooks, Trainer, TrainResult
from vidsim.engine.optimizer import describe as describe_groups
from vidsim.engine.optimizer import make_optimizer
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.seeding import seed_everything
from vidsim.engine.session import run_session, run_training
from vidsim.engine.settings import parse_settings
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.batches import epoch_steps, task_stage
from vidsim.finetune.cowatch_config import CowatchConfig
from vidsim.finetune.cowatch_evaluation import Vectors, evaluate_related, floors
from vidsim.finetune.cowatch_sources import Source, embed_all, open_source
from vidsim.finetune.tasks.cowatch import CowatchModule, TripletCollator, TripletRows
from vidsim.modeling.model_files import WEIGHTS_FILE

EMBEDDINGS, EVALUATION_FILE = "embeddings", "evaluation.json"
EXAMPLES = (
    "vidsim finetune-cowatch --graph data/cowatch --features '{visual: visual.npy, audio: audio.npy}' --ids ids.txt",
    "vidsim finetune-cowatch --config launch/recipes/finetune/cowatch_encoder.yaml --init_from runs/pretrain/base",
    "vidsim finetune-cowatch --config runs/finetune/cowatch/config.yaml --resume",
)


@dataclass(frozen=True, kw_only=True)
class CowatchData:
    """Graph and videos of a run, in one numbering."""

    source: Source
    graph: CowatchGraph
    queries: dict[int, dict[str, RelatedQueries]]
    """Of each held-out part, by direction."""

    @property
    def training(self) -> Integers:
        """Numbers of the training videos."""
        return np.flatnonzero(self.graph.part == TRAIN)

    def lines(self) -> list[str]:
        """What there is, for people."""
        counts = np.bincount(self.graph.part, minlength=len(PARTS)).tolist()
        lines = [
            f"videos: {', '.join(f'{count:,} {name}' for count, name in zip(counts, PARTS, strict=True))}; "
            f"{self.source.describe()}",
            f"edges: {len(self.graph.training_edges()):,} of {len(self.graph.weights):,} join two training videos",
        ]
        for part, directions in self.queries.items():
            for name, related in directions.items():
                what = f"{len(related.queries):,} queries, {len(related.candidates):,} candidates"
                relevant = f"{len(related.rows) / len(related.queries):.1f} relevant each"
                lines.append(f"{PARTS[part]} {name}: {what}, {relevant}")
            if not directions:
                what = "the last checkpoint is kept" if part == VALIDATION else "nothing is reported"
                lines.append(f"no edge joins a training and a {PARTS[part]} video: {what}")
        return lines


def main(argv: list[str] | None = None) -> int:
    """Entry point of the script and of `vidsim finetune-cowatch`."""
    settings = parse_settings(
        CowatchConfig,
        argv,
        prog="vidsim finetune-cowatch",
        description="Learn an embedding from the graph of videos watched one after another: towers over precomputed "
        "features, or the encoder of a checkpoint from end to end.",
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
    """Train, then embed all videos with the best checkpoint and evaluate them. Collective."""
    result = finetune(config, data, run, reporter, accelerator)
    if not result.interrupted:
        vectors = write_all(config, data, run, reporter, accelerator)
        if data.queries[EVAL]:
            report(config, data, vectors, run, reporter, accelerator)
    return result


def open_data(config: CowatchConfig) -> CowatchData:
    """Read graph and videos; whatever does not fit is named before any device is touched."""
    graph = read_graph(config.graph)
    source = open_source(config)
    graph = on_videos(graph, source.ids)
    training = graph.training_edges()
    if len(np.unique(graph.edges[:, training])) < 3:
        what = f"{len(training):,} of its {len(graph.weights):,} edges join two training videos"
        fix = "make it from more sessions, with a lower --min_weight or a smaller --eval_fraction"
        raise UserError(f"{what}: too few to learn from", file=config.graph, fix=fix)
    queries = {part: related_queries(graph, config.max_queries, config.seed, part) for part in (VALIDATION, EVAL)}
    return CowatchData(source=source, graph=graph, queries=queries)


def num_steps(config: CowatchConfig, data: CowatchData, world_size: int) -> int:
    """Optimizer steps of all epochs."""
    return epoch_steps(len(data.graph.training_edges()), config.num_epochs, config.loop, world_size)


def finetune(
    config: CowatchConfig, data: CowatchData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> TrainResult:
    """Build everything and train. Collective."""
    seed_everything(config.seed)
    neighbours = data.graph.neighbours(data.graph.training_edges())
    network = data.source.build(data.training, accelerator)
    module = CowatchModule(network, config.task, neighbours).to(accelerator.device)
    groups = data.source.groups(module)
    reporter.note([*banner_lines(accelerator), *describe_groups(groups), *data.lines()])
    queries = data.queries[VALIDATION]

    def evaluate() -> dict[str, float]:
        vectors = embed_all(module.encoder, data.source, config.loop.eval_batch_size, accelerator)
        try:
            found = evaluate_related(vectors, queries, config.k)
        except UserError as error:
            what = f"step {trainer.progress.step}: the model cannot be scored: {error}"
            raise UserError(what, fix="lower optimizer.learning_rate") from error
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
            export=lambda folder, metrics: data.source.save(module.encoder, folder, metrics),
            select=f"validation/ndcg@{config.k}" if queries else None,
        ),
        reporter=reporter,
        checkpoints=run.checkpoints,
        seed=config.seed,
        ema=ExponentialMovingAverage(module, config.ema) if config.ema else None,
    )
    rows = TripletRows(data.graph, config.seed)
    collator = TripletCollator(data.source.collate, data.source.ids)
    stage = task_stage(rows, collator, config.schedule, config.loop, accelerator, config.seed, total)
    return run_training(trainer, [stage], to_device, resume=config.resume)


def write_all(
    config: CowatchConfig, data: CowatchData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> Vectors:
    """Write the embeddings of all videos by the best checkpoint. Collective."""
    folder = checkpoint_of(run.path)
    network = data.source.load(folder).to(accelerator.device).eval()
    vectors = embed_all(network, data.source, config.loop.eval_batch_size, accelerator)
    if accelerator.is_main_process:
        metadata = {
            "model": sha256_file(folder / WEIGHTS_FILE),
            "data": sha256_file(Path(config.graph) / INDEX_FILE),
            "normalized": True,
        }
        write_embeddings(run.path / EMBEDDINGS, data.source.ids, vectors, metadata)
    reporter.note([f"embeddings of {len(vectors):,} videos: {run.path / EMBEDDINGS}"])
    accelerator.wait_for_everyone()
    return vectors


def report(
    config: CowatchConfig,
    data: CowatchData,
    vectors: Vectors,
    run: RunFolder,
    reporter: Reporter,
    accelerator: Accelerator,
) -> None:
    """Metrics on the eval videos, beside those of what needs no learning, into `evaluation.json`. Collective."""
    queries = data.queries[EVAL]
    untrained = data.source.untrained(data.training, accelerator)
    if not accelerator.is_main_process:
        return
    found = {"trained": evaluate_related(vectors, queries, config.k)}
    found |= floors(data.graph, untrained, queries, config.k)
    write_json(run.path / EVALUATION_FILE, found)
    for name, metrics in found.items():
        reporter.note([f"eval, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())])


if __name__ == "__main__":
    leave(run_entry(main))
