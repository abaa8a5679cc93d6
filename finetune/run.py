"""Finetune on labelled pairs: `accelerate launch finetune/run.py --config RECIPE.yaml [--field value …]`.

Reads top to bottom: settings, checks, pairs, model, loop. The loop itself is `engine/loop.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from vidsim.common.entry import leave, run_entry
from vidsim.common.errors import UserError
from vidsim.data.arrow import Videos, open_all
from vidsim.data.collators import encode_rows, to_device
from vidsim.data.embeddings import read_embeddings
from vidsim.data.pair_cosines import cosines_of_pairs
from vidsim.data.pairs import Pairs, read_pairs
from vidsim.data.splits import describe, split_pairs
from vidsim.data.tags import TagVocabulary
from vidsim.engine.accelerator import banner_lines
from vidsim.engine.balance import BalanceConfig, LossBalancer
from vidsim.engine.ema import ExponentialMovingAverage
from vidsim.engine.loop import Hooks, Trainer, TrainResult
from vidsim.engine.optimizer import describe as describe_groups
from vidsim.engine.optimizer import make_optimizer, parameter_groups
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.seeding import seed_everything
from vidsim.engine.session import run_session, run_training
from vidsim.engine.settings import parse_settings
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.batches import epoch_steps, task_stage
from vidsim.finetune.config import FinetuneConfig
from vidsim.finetune.projection import POWERS, start_projection
from vidsim.finetune.tasks.similarity import PairCollator, PairRows, SimilarityModule, evaluate_pairs, pair_labels
from vidsim.modeling.build import check_streams_match, load_encoder, save_encoder
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.model_card import write_model_card
from vidsim.modeling.parameters import head_test, layer_numbers
from vidsim.modeling.processor import VideoTextProcessor

EXAMPLES = (
    "vidsim finetune --config launch/recipes/finetune/similarity.yaml --init_from runs/pretrain/base",
    "vidsim finetune --init_from runs/a --data.videos '[data/mine]' --data.pairs pairs.tsv --output_dir runs/b",
    "vidsim finetune --config runs/b/config.yaml --resume",
)


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Pairs of a run: train and validation, with transformed labels."""

    videos: Videos
    train: Pairs
    validation: Pairs
    train_labels: np.ndarray
    validation_labels: np.ndarray
    tags: TagVocabulary | None
    lines: list[str]


def main(argv: list[str] | None = None) -> int:
    """Entry point of the script and of `vidsim finetune`."""
    settings = parse_settings(
        FinetuneConfig,
        argv,
        prog="vidsim finetune",
        description="Finetune a checkpoint on labelled pairs of videos. Recipes hold the settings, options win over "
        "recipes. `accelerate launch finetune/run.py` takes the same options.",
        examples=EXAMPLES,
    )
    config: FinetuneConfig = settings.config
    config.validate()
    if config.data.bundled_sample is not None:
        from vidsim.data.sample.prepare import prepare_sample

        prepare_sample(Path(config.data.bundled_sample))
    data = open_pairs(config)
    if config.dry_run:
        source = checkpoint_of(Path(config.init_from))
        encoder, _ = load_encoder(source, pooling=config.pooling)
        check_streams_match(encoder.config, data.videos.streams, source)
        print("\n".join([*data.lines, f"steps: {num_steps(config, data, 1):,} on one process"]))
        return 0
    return run_session(config, config.output_dir, settings, partial(finetune, config, data))


def open_pairs(config: FinetuneConfig) -> PairData:
    """Read pairs, split them, transform labels; every id is looked up before any device is touched."""
    options = config.data
    videos = open_all(options.videos)
    score_range = (options.score_range[0], options.score_range[1])
    pairs = read_pairs(options.pairs, score_range=score_range)
    lines = []
    if options.validation is not None:
        train_pairs, validation = pairs, read_pairs(options.validation, score_range=score_range)
        shared = {*pairs.id1, *pairs.id2} & {*validation.id1, *validation.id2}
        lines.append(
            f"pairs: {len(train_pairs):,} train, {len(validation):,} validation from files; "
            f"overlap: {len(shared):,} videos of validation pairs are trained on"
        )
    elif options.split == "none":
        train_pairs = validation = pairs
        lines.append(f"pairs: all {len(pairs):,} train; the validation figures below are on training pairs")
    else:
        split = split_pairs(pairs, options.split, options.fold, options.num_folds, options.seed)
        train_pairs, validation = pairs.take(split.train), pairs.take(split.validation)
        lines.append(describe(split, pairs))
    for part in (train_pairs, validation):
        videos.rows_of([*part.id1, *part.id2], asked_by=part.name)
    if len(np.unique(validation.score)) < 2:
        raise UserError(
            "all validation scores are equal: no ranking to agree with",
            file=options.validation or options.pairs,
            field="score",
            fix="give validation pairs of different scores, or another fold",
        )
    teacher = None if options.teacher is None else cosines_of_pairs(read_embeddings(options.teacher), train_pairs)
    try:
        train_labels, validation_labels = pair_labels(config.task, train_pairs, validation, teacher)
    except ValueError as error:
        raise UserError(str(error), file=options.pairs, field="score") from error
    return PairData(
        videos=videos,
        train=train_pairs,
        validation=validation,
        train_labels=train_labels,
        validation_labels=validation_labels,
        tags=TagVocabulary.from_file(options.tags) if options.tags else None,
        lines=lines,
    )


def num_steps(config: FinetuneConfig, data: PairData, world_size: int) -> int:
    """Optimizer steps of all epochs."""
    return epoch_steps(len(data.train), config.num_epochs, config.loop, world_size)


def finetune(
    config: FinetuneConfig, data: PairData, run: RunFolder, reporter: Reporter, accelerator: Accelerator
) -> TrainResult:
    """Build everything and train. Collective."""
    seed_everything(config.seed)
    source = checkpoint_of(Path(config.init_from))
    encoder, processor = load_encoder(source, pooling=config.pooling, reset_projection=config.projection == "random")
    check_streams_match(encoder.config, data.videos.streams, source)
    module = SimilarityModule(encoder, config.task, num_tags=data.tags.size if data.tags else 0, seed=config.seed).to(
        accelerator.device
    )
    if config.projection in POWERS:
        reporter.note([start_from_training_videos(encoder, data, processor, config, accelerator)])
    encoder.prepare_training(gradient_checkpointing=config.loop.gradient_checkpointing, compile=config.loop.compile)
    layers, num_layers = layer_numbers(module, encoder)
    is_head = head_test(module, config.optimizer.head_parameters)
    groups = parameter_groups(module, config.optimizer, is_head, layers.get, num_layers)
    reporter.note([*banner_lines(accelerator), *describe_groups(groups), f"initial weights: {source}", *data.lines])

    def evaluate() -> dict[str, float]:
        try:
            return evaluate_pairs(
                module,
                data.videos,
                data.validation,
                data.validation_labels,
                processor,
                batch_size=config.loop.eval_batch_size,
                accelerator=accelerator,
            )
        except ValueError as error:
            what = f"step {trainer.progress.step}: the model cannot be scored: {error}"
            raise UserError(what, fix="lower optimizer.learning_rate") from error

    total = num_steps(config, data, accelerator.num_processes)
    rows = PairRows(data.videos, data.train, data.train_labels)
    collator = PairCollator(processor, data.tags)
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=make_optimizer(groups, config.optimizer, accelerator.device),
        balancer=LossBalancer(BalanceConfig(), module.weights, []),
        config=config.loop,
        hooks=Hooks(
            evaluate=evaluate,
            export=partial(export, module, processor, config),
            # With all pairs training, their Spearman says nothing: the last step is taken.
            select=None if config.data.split == "none" else "validation/spearman",
        ),
        reporter=reporter,
        checkpoints=run.checkpoints,
        seed=config.seed,
        ema=ExponentialMovingAverage(module, config.ema) if config.ema else None,
        fgm=config.fgm,
    )
    stage = task_stage(rows, collator, config.schedule, config.loop, accelerator, config.seed, total)
    return run_training(trainer, [stage], to_device, resume=config.resume)


def start_from_training_videos(
    encoder: VideoTextEncoder,
    data: PairData,
    processor: VideoTextProcessor,
    config: FinetuneConfig,
    accelerator: Accelerator,
) -> str:
    """Start the projection from the videos of the training pairs, and no others; a line about it. Collective."""
    share = start_projection(
        encoder,
        lambda rows: encode_rows(data.videos.read(rows.tolist()), processor),
        data.videos.rows_of(data.train.unique_ids()),
        power=POWERS[config.projection],
        batch_size=config.loop.eval_batch_size,
        accelerator=accelerator,
    )
    return f"projection: {config.projection}, {share:.2%} of the pooled states' variance kept"


def export(
    module: SimilarityModule,
    processor: VideoTextProcessor,
    config: FinetuneConfig,
    folder: Path,
    metrics: dict[str, float],
) -> None:
    """Write the encoder as a self-contained Hugging Face checkpoint."""
    save_encoder(module.encoder, processor, folder)
    write_model_card(folder, metrics, Path(config.output_dir).name, config.data.videos)


if __name__ == "__main__":
    leave(run_entry(main))
