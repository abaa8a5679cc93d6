"""Learn to tag videos from their features: `accelerate launch finetune/annotation.py --config RECIPE.yaml [--field …]`.

Reads top to bottom: settings, features and tags, network, loop, test. The loop itself is `engine/loop.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from vidsim.common.entry import leave, run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import write_json
from vidsim.data.annotation import Annotation, annotate, read_tags, split_videos, tag_columns
from vidsim.data.collators import to_device
from vidsim.data.cowatch_graph import Integers
from vidsim.data.embeddings import positions, shown
from vidsim.data.feature_streams import FeatureStreams, open_features
from vidsim.data.ids import read_ids
from vidsim.data.pca import block_pca
from vidsim.engine.accelerator import banner_lines
from vidsim.engine.balance import BalanceConfig, LossBalancer
from vidsim.engine.gather import map_rows
from vidsim.engine.loop import Hooks, Trainer, TrainResult
from vidsim.engine.optimizer import describe as describe_groups
from vidsim.engine.optimizer import make_optimizer, parameter_groups
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.seeding import seed_everything
from vidsim.engine.session import run_session, run_training
from vidsim.engine.settings import parse_settings
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.annotation_config import AnnotationConfig
from vidsim.finetune.batches import epoch_steps, task_stage
from vidsim.finetune.tasks.annotation import AnnotationCollator, AnnotationModule, TrainingRows
from vidsim.modeling.annotation_metrics import Predictions, annotation_metrics
from vidsim.modeling.mixture_of_experts import Tagger, TaggerConfig

TAGS_FILE = "tags.txt"  # of a checkpoint: the classes, with their counts in training
TEST_FILE = "test.json"
EXAMPLES = (
    "vidsim finetune-annotation --tags videos.jsonl --features '{visual: visual.npy, ours: runs/emb}' --ids ids.txt",
    "vidsim finetune-annotation --config runs/finetune/annotation/config.yaml --resume",
)


@dataclass(frozen=True, kw_only=True)
class AnnotationData:
    """Features and tags of a run, in one numbering of the videos."""

    features: FeatureStreams
    annotation: Annotation

    def lines(self) -> list[str]:
        """What there is, for people."""
        streams = ", ".join(f"{name} {dim}" for name, dim in self.features.dims.items())
        return [f"streams: {streams}", *self.annotation.lines]


def main(argv: list[str] | None = None) -> int:
    """Entry point of the script and of `vidsim finetune-annotation`."""
    settings = parse_settings(
        AnnotationConfig,
        argv,
        prog="vidsim finetune-annotation",
        description="Learn to tag videos from precomputed features, with a mixture of experts for each tag.",
        examples=EXAMPLES,
    )
    config: AnnotationConfig = settings.config
    config.validate()
    data = open_data(config)
    if config.dry_run:
        steps = f"steps: {num_steps(config, data, 1):,} on one process"
        print("\n".join([*data.lines(), *floors(config, data), steps]))
        return 0
    return run_session(config, config.output_dir, settings, partial(finetune_and_test, config, data))


def finetune_and_test(
    config: AnnotationConfig, data: AnnotationData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> TrainResult:
    """Train, then judge the best tagger by the test videos. Collective."""
    result = finetune(config, data, run, reporter, accelerator)
    videos = data.annotation.evaluated["test"]
    if not result.interrupted and len(videos):
        tagger = Tagger.load(checkpoint_of(run.path)).to(accelerator.device).eval()
        metrics = judge(config, data, videos, *predict_all(tagger, data.features, videos, config, accelerator))
        if accelerator.is_main_process:
            write_json(run.path / TEST_FILE, {"num_videos": len(videos), "k": config.k, **metrics})
        reporter.note([describe("best checkpoint, test", metrics)])
        accelerator.wait_for_everyone()
    return result


def open_data(config: AnnotationConfig) -> AnnotationData:
    """Read tags and features; whatever does not fit is named before any device is touched."""
    tagged = read_tags(config.tags, tag_columns(config.id_column, config.tag_columns, config.tag_separator))
    test_ids = read_ids(config.test_ids) if config.test_ids else None
    features = open_features(config.features, config.ids)
    if test_ids is not None:
        lacking = [test_ids[i] for i in np.flatnonzero(positions(test_ids, features.ids) < 0).tolist()]
        if lacking:
            what = f"{len(lacking):,} of {len(test_ids):,} videos have no features: {shown(lacking)}"
            raise UserError(what, file=config.test_ids, fix="leave them out of the list, or add their features")
    part = split_videos(features.ids, config.test_fraction, config.validation_fraction, config.split_seed, test_ids)
    annotation = annotate(features.ids, tagged, part, min_count=config.min_count, max_tags=config.max_tags)
    return AnnotationData(features=features, annotation=annotation)


def num_steps(config: AnnotationConfig, data: AnnotationData, world_size: int) -> int:
    """Optimizer steps of all epochs."""
    return epoch_steps(len(data.annotation.train), config.num_epochs, config.loop, world_size)


def build_tagger(config: AnnotationConfig, data: AnnotationData) -> tuple[Tagger, list[str]]:
    """A fresh tagger on the training videos' principal directions, and a line about each stream."""
    annotation = data.annotation
    blocks = block_pca(data.features, annotation.train, config.task.num_directions)
    tagger = Tagger(
        TaggerConfig(
            streams={name: (dim, len(blocks[name].variances)) for name, dim in data.features.dims.items()},
            num_tags=annotation.vocabulary.size,
            model=config.task.model,
            num_experts=config.task.num_experts,
        )
    )
    tagger.fit_inputs(
        {name: torch.from_numpy(block.mean) for name, block in blocks.items()},
        {name: block.scale for name, block in blocks.items()},
        {name: torch.from_numpy(block.directions) for name, block in blocks.items()},
    )
    counts = torch.tensor(annotation.vocabulary.counts, dtype=torch.float32)
    tagger.head.start_at((counts + 0.5) / (len(annotation.train) + 1))
    return tagger, [
        f"{name}: {len(block.variances)} of {len(block.mean)} directions, {block.explained:.1%} of the variance"
        for name, block in blocks.items()
    ]


def finetune(
    config: AnnotationConfig, data: AnnotationData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> TrainResult:
    """Build everything and train. Collective."""
    seed_everything(config.seed)
    tagger, streams = build_tagger(config, data)
    module = AnnotationModule(tagger).to(accelerator.device)
    groups = parameter_groups(
        module, config.optimizer, lambda name: name.startswith("tagger.head."), lambda name: None, 1
    )
    about = [*data.lines(), *streams, *floors(config, data)]
    reporter.note([*banner_lines(accelerator), *describe_groups(groups), *about])
    videos = data.annotation.evaluated["validation"]

    def evaluate() -> dict[str, float]:
        found = judge(config, data, videos, *predict_all(module.tagger, data.features, videos, config, accelerator))
        return {f"validation/{name}": value for name, value in found.items()}

    def export(folder: Path, metrics: dict[str, float]) -> None:
        module.tagger.save(folder)
        data.annotation.vocabulary.save(folder / TAGS_FILE)

    total = num_steps(config, data, accelerator.num_processes)
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=make_optimizer(groups, config.optimizer, accelerator.device),
        balancer=LossBalancer(BalanceConfig(), module.weights, []),
        config=config.loop,
        hooks=Hooks(evaluate=evaluate, export=export, select=f"validation/gap@{config.k}"),
        reporter=reporter,
        checkpoints=run.checkpoints,
        seed=config.seed,
    )
    rows, collator = TrainingRows(data.annotation), AnnotationCollator(data.features, data.annotation)
    stage = task_stage(rows, collator, config.schedule, config.loop, accelerator, config.seed, total)
    return run_training(trainer, [stage], to_device, resume=config.resume)


def best_tags(logits: Tensor, k: int) -> Tensor:
    """The k largest log-odds of each video and their tags, as float32 [B, 2k], the largest first."""
    values, tags = logits.topk(k, dim=1)
    return torch.cat([values, tags.float()], dim=1)  # numbers of tags below 2^24 are exact


def predict_all(
    tagger: Tagger, features: FeatureStreams, videos: Integers, config: AnnotationConfig, accelerator: Accelerator
) -> tuple[Integers, np.ndarray]:
    """The best tags int64 [len(videos), k] of some videos and their log-odds float32. Collective."""
    k = min(config.k, tagger.config.num_tags)

    def encode(rows: np.ndarray) -> Tensor:
        batch = {name: torch.from_numpy(vectors) for name, vectors in features.take(videos[rows]).items()}
        return best_tags(tagger(**to_device(batch, accelerator.device)), k)

    batch_size = config.loop.eval_batch_size
    found = map_rows(encode, len(videos), 2 * k, batch_size=batch_size, accelerator=accelerator)
    return found[:, k:].astype(np.int64), found[:, :k]


def judge(
    config: AnnotationConfig, data: AnnotationData, videos: Integers, tags: Integers, scores: np.ndarray
) -> dict[str, float]:
    """`gap@k`, `map_sample@k` and `map_class@k` of what was predicted for these videos."""
    try:
        predictions = Predictions.judge(tags, scores, *data.annotation.pairs(videos))
    except ValueError as error:
        raise UserError(f"the model cannot be judged: {error}", fix="lower optimizer.learning_rate") from error
    return {f"{name}@{config.k}": value for name, value in annotation_metrics(predictions).items()}


def floors(config: AnnotationConfig, data: AnnotationData) -> list[str]:
    """What needs no learning: the most frequent tags, the same for every video."""
    return [
        describe(f"the most frequent tags, {name}", judge(config, data, videos, *most_frequent(data, videos, config.k)))
        for name, videos in data.annotation.evaluated.items()
        if len(videos)
    ]


def most_frequent(data: AnnotationData, videos: Integers, k: int) -> tuple[Integers, np.ndarray]:
    """The k tags of most training videos and their counts, int64 [len(videos), k], the same for every video."""
    counts = np.array(data.annotation.vocabulary.counts[:k])
    return np.tile(np.arange(len(counts)), (len(videos), 1)), np.tile(counts, (len(videos), 1))


def describe(what: str, metrics: dict[str, float]) -> str:
    """A line about metrics."""
    return f"{what}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


if __name__ == "__main__":
    leave(run_entry(main))
