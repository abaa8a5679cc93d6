"""Pretrain: `accelerate launch pretrain/run.py [--config RECIPE.yaml] [--field value …]`; nothing = the demo.

Reads top to bottom: settings, checks, data, model, loop. The loop itself is `engine/loop.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator

from vidsim.common.entry import leave, run_entry
from vidsim.common.errors import UserError
from vidsim.data.collators import Batch, PretrainCollator, VideoRows, to_device
from vidsim.data.corpus import Corpus, open_corpus, read_excluded
from vidsim.data.corpus_tokenizer import corpus_tokenizer
from vidsim.data.loading import step_batches
from vidsim.data.pairs import Pairs, read_pairs
from vidsim.data.samplers import MicroBatchSampler, RowOrder, Stream, TokenOrder, num_steps
from vidsim.data.tags import TagVocabulary
from vidsim.data.token_counts import token_counts
from vidsim.engine.accelerator import banner_lines
from vidsim.engine.balance import LossBalancer
from vidsim.engine.loop import Hooks, Stage, Trainer, TrainResult
from vidsim.engine.optimizer import describe as describe_groups
from vidsim.engine.optimizer import make_optimizer, parameter_groups
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.seeding import seed_everything
from vidsim.engine.session import run_session, run_training
from vidsim.engine.settings import parse_settings
from vidsim.modeling.build import build_encoder, build_processor, save_encoder
from vidsim.modeling.config import FRAMES
from vidsim.modeling.initialization import LoadReport, load_mlm_head
from vidsim.modeling.model_card import write_model_card
from vidsim.modeling.objectives.mlm import MlmObjective
from vidsim.modeling.parameters import head_test, layer_numbers
from vidsim.modeling.processor import VideoTextProcessor
from vidsim.pretrain.config import PretrainConfig
from vidsim.pretrain.evaluate import held_out_losses, probe_spearman
from vidsim.pretrain.module import PretrainModule

DEMO_RECIPE = Path(__file__).resolve().parent.parent / "launch/recipes/pretrain/demo.yaml"
EXAMPLES = (
    "vidsim pretrain --config launch/recipes/pretrain/base.yaml --dry_run",
    "vidsim pretrain --config launch/recipes/pretrain/base.yaml --optimizer.learning_rate 1e-4 --output_dir runs/a",
    "vidsim pretrain --config launch/recipes/pretrain/job1.yaml --config launch/recipes/pretrain/scaled_down.yaml",
    "vidsim pretrain --config runs/a/config.yaml --resume",
)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the script and of `vidsim pretrain`."""
    settings = parse_settings(
        PretrainConfig,
        argv,
        prog="vidsim pretrain",
        description="Pretrain the encoder on unlabelled videos. Recipes hold the settings, options win over recipes; "
        "with neither, the demo recipe is run. `accelerate launch pretrain/run.py` takes the same options.",
        examples=EXAMPLES,
        default_recipe=DEMO_RECIPE,
    )
    config: PretrainConfig = settings.config
    config.validate()
    prepare_sample(config)
    corpus = open_training_corpus(config)
    check_frames(config, corpus)
    probe = open_probe(config, corpus.videos.streams)
    if config.dry_run:
        print("\n".join(describe(config, corpus, world_size=1)))
        return 0
    return run_session(config, config.output_dir, settings, partial(pretrain, config, corpus, probe))


def prepare_sample(config: PretrainConfig) -> None:
    """Convert the bundled sample where a recipe asks for it."""
    if config.data.bundled_sample is not None:
        from vidsim.data.sample.prepare import prepare_sample as convert_sample

        convert_sample(Path(config.data.bundled_sample))


def open_training_corpus(config: PretrainConfig) -> Corpus:
    """All data sets of all stages, with the excluded and held-out rows set apart."""
    folders = [folder for stage in config.data.stages for folder in stage.data]
    return open_corpus(
        folders, excluded=read_excluded(config.data.exclude), held_out_fraction=config.data.held_out_fraction
    )


def check_frames(config: PretrainConfig, corpus: Corpus) -> None:
    """Refuse objectives that need frames where the data sets have none."""
    for name in ("mfm", "contrastive", "vtm"):
        if getattr(config.objectives, name) is not None and FRAMES not in corpus.videos.streams:
            raise UserError(
                "the videos have no frames",
                file=config.data.stages[0].data[0],
                field=f"objectives.{name}",
                fix=f"add --objectives.{name} null, or convert the data with features",
            )


def open_probe(config: PretrainConfig, streams: Mapping[str, int]) -> tuple[Corpus, Pairs] | None:
    """Videos and pairs of the probe; they must have the streams of the training data."""
    if config.probe is None:
        return None
    corpus = open_corpus(config.probe.data, excluded=set(), held_out_fraction=0.0)
    if corpus.videos.streams != streams:
        raise UserError(
            f"has the streams {corpus.videos.streams or 'none'}, the training data {streams or 'none'}",
            file=config.probe.data[0],
            field="probe.data",
            fix="convert both with the same features",
        )
    pairs = read_pairs(config.probe.pairs)
    pairs = pairs.take(range(min(len(pairs), config.probe.max_pairs)))
    if len(np.unique(pairs.score)) < 2:
        raise UserError("all scores are equal: no ranking to agree with", file=config.probe.pairs, field="score")
    # Names the missing ones now, not after the first epoch.
    corpus.videos.rows_of([*pairs.id1, *pairs.id2], asked_by=config.probe.pairs)
    return corpus, pairs


def stage_order(config: PretrainConfig, corpus: Corpus, number: int, counts: np.ndarray | None) -> Stream:
    """The rows of a stage in their order, counted in tokens where `counts` are given."""
    stage = config.data.stages[number]
    rows = RowOrder(
        [corpus.trainable[name] for name in stage.data],
        order=stage.order,
        seed=config.seed + number,
        first_epoch=sum(
            math.ceil(earlier.num_epochs * config.data.epoch_scale) for earlier in config.data.stages[:number]
        ),
    )
    return rows if counts is None else TokenOrder(rows, counts)


def stage_steps(config: PretrainConfig, corpus: Corpus, world_size: int, counts: np.ndarray | None = None) -> list[int]:
    """Optimizer steps of each stage: its epochs in global batches, rounded."""
    return [
        num_steps(
            stage_order(config, corpus, number, counts),
            stage.num_epochs * config.data.epoch_scale,
            micro_batch_size=micro_batch_size(config),
            gradient_accumulation_steps=config.loop.gradient_accumulation_steps,
            world_size=world_size,
        )
        for number, stage in enumerate(config.data.stages)
    ]


def micro_batch_size(config: PretrainConfig) -> int:
    """Rows of a micro-batch, or its tokens."""
    return config.loop.micro_batch_tokens or config.loop.micro_batch_size


def describe(config: PretrainConfig, corpus: Corpus, world_size: int) -> list[str]:
    """Lines for the banner and the dry run."""
    lines = [
        f"videos: {len(corpus.videos):,} in {len(corpus.trainable)} data sets; "
        f"{corpus.num_excluded:,} excluded, {len(corpus.held_out):,} held out"
    ]
    tokens = config.loop.micro_batch_tokens
    # By tokens, the steps are known once the titles are tokenised.
    steps = stage_steps(config, corpus, world_size) if tokens is None else []
    for number, stage in enumerate(config.data.stages):
        length = f"{steps[number]:,} steps" if tokens is None else f"micro-batches of {tokens:,} tokens"
        lines.append(
            f"stage {number + 1}: {', '.join(stage.data)} ({stage.order}), "
            f"{stage.num_epochs * config.data.epoch_scale:g} epochs = {length}"
        )
    active = [name for name, value in vars(config.objectives).items() if value is not None]
    lines.append(f"objectives: {', '.join(active)} (balance: {config.balance.mode})")
    if not config.data.exclude:
        lines.append("note: data.exclude is empty, so videos of validation and test pairs may be trained on")
    return lines


def stage_batches(
    config: PretrainConfig,
    corpus: Corpus,
    collator: PretrainCollator,
    accelerator: Accelerator,
    counts: np.ndarray | None = None,
) -> list[Stage]:
    """The stages with their steps and the micro-batches of this rank."""
    loop = config.loop
    rows = VideoRows(corpus.videos)

    def batches(number: int, num_steps: int, start_step: int) -> Iterable[Batch]:
        sampler = MicroBatchSampler(
            stage_order(config, corpus, number, counts),
            micro_batch_size=micro_batch_size(config),
            gradient_accumulation_steps=loop.gradient_accumulation_steps,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start_step=start_step,
            num_steps=num_steps,
        )
        return step_batches(rows, sampler, collator, num_workers=loop.num_workers)

    steps = stage_steps(config, corpus, accelerator.num_processes, counts)
    return [
        Stage(num_steps=num_steps, schedule=config.schedule, batches=partial(batches, number, num_steps))
        for number, num_steps in enumerate(steps)
    ]


def pretrain(
    config: PretrainConfig,
    corpus: Corpus,
    probe: tuple[Corpus, Pairs] | None,
    run: RunFolder,
    reporter: Reporter,
    accelerator: Accelerator,
) -> TrainResult:
    """Build everything and train. Collective."""
    seed_everything(config.seed)
    reporter.note([*banner_lines(accelerator), *describe(config, corpus, accelerator.num_processes)])
    with accelerator.main_process_first():
        # The first process keeps what an unfinished run left only if it goes on with it; the others take its files.
        keep = run.is_resumed or not accelerator.is_main_process
        folder = run.path / "tokenizer"
        rows = list(corpus.trainable.values())
        tokenizer = corpus_tokenizer(config.tokenizer, config.model.init_from, corpus.videos, rows, folder, keep=keep)
        tags = tag_vocabulary(config, corpus, run.path / "tags.txt", keep=keep)
    processor = build_processor(config.model, tokenizer, corpus.videos.streams)
    counts = None
    if config.loop.micro_batch_tokens is not None:
        with accelerator.main_process_first():
            counts = token_counts(corpus.videos, processor, run.path)
    module, reports = build_module(config, corpus, tokenizer, tags)
    module.encoder.prepare_training(
        gradient_checkpointing=config.loop.gradient_checkpointing, compile=config.loop.compile
    )
    layers, num_layers = layer_numbers(module, module.encoder)
    is_head = head_test(module, config.optimizer.head_parameters)
    groups = parameter_groups(module, config.optimizer, is_head, layers.get, num_layers)
    reporter.note([*(f"from {config.model.init_from}: {report}" for report in reports), *describe_groups(groups)])
    collator = PretrainCollator(
        processor,
        tags=tags,
        masking=config.masking,
        seed=config.seed,
        mask_text=config.objectives.mlm is not None,
        mask_frames=config.objectives.mfm is not None,
    )
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=make_optimizer(groups, config.optimizer, accelerator.device),
        balancer=LossBalancer(config.balance, module.weights, module.shared_parameters()),
        config=config.loop,
        hooks=make_hooks(config, corpus, probe, module, collator, accelerator),
        reporter=reporter,
        checkpoints=run.checkpoints,
        seed=config.seed,
    )
    stages = stage_batches(config, corpus, collator, accelerator, counts)
    return run_training(trainer, stages, to_device, resume=config.resume)


def build_module(
    config: PretrainConfig, corpus: Corpus, tokenizer: Any, tags: TagVocabulary | None
) -> tuple[PretrainModule, list[LoadReport]]:
    """Encoder and objectives, and what a text checkpoint did not hold."""
    encoder, report = build_encoder(config.model, tokenizer, corpus.videos.streams)
    module = PretrainModule(encoder, config.objectives, num_tags=tags.size if tags else 0, seed=config.seed)
    reports = [report] if report is not None else []
    if config.model.init_from is not None and "mlm" in module.objectives:
        reports.append(load_mlm_head(config.model.init_from, cast(MlmObjective, module.objectives["mlm"]).head))
    return module, reports


def make_hooks(
    config: PretrainConfig,
    corpus: Corpus,
    probe: tuple[Corpus, Pairs] | None,
    module: PretrainModule,
    collator: PretrainCollator,
    accelerator: Accelerator,
) -> Hooks:
    """Evaluation on held-out rows and the probe; the best checkpoint has the lowest held-out loss."""
    # Every n-th, so that all data sets are in it.
    held_out = corpus.held_out[:: max(1, -(-len(corpus.held_out) // config.data.held_out_max_rows))]
    processor = cast(VideoTextProcessor, collator.processor)
    batch_size = config.loop.eval_batch_size
    if not len(held_out) and probe is None:
        raise UserError(
            "nothing to evaluate on: no row is held out and no probe is given",
            field="data.held_out_fraction",
            fix="raise it, or set a probe",
        )
    if 0 < min(len(held_out), batch_size) < accelerator.num_processes:
        raise UserError(
            f"{len(held_out)} held-out rows, {batch_size} at a time, on {accelerator.num_processes} processes: "
            "one of them would have none",
            field="data.held_out_fraction",
            fix="raise it, or loop.eval_batch_size",
        )

    def evaluate() -> dict[str, float]:
        metrics: dict[str, float] = {}
        if len(held_out):
            metrics |= held_out_losses(module, accelerator, corpus.videos, held_out, collator, batch_size)
        if probe is not None:
            metrics |= probe_spearman(module, accelerator, probe[0].videos, probe[1], processor, batch_size)
        return metrics

    def export(folder: Path, metrics: dict[str, float]) -> None:
        save_encoder(module.encoder, processor, folder)
        names = [name for stage in config.data.stages for name in stage.data]
        write_model_card(folder, metrics, Path(config.output_dir).name, names, base_model=config.model.init_from)

    return Hooks(
        evaluate=evaluate,
        export=export,
        select="held_out/loss" if len(held_out) else "probe/spearman",
        select_mode="min" if len(held_out) else "max",
    )


def tag_vocabulary(config: PretrainConfig, corpus: Corpus, path: Path, *, keep: bool) -> TagVocabulary | None:
    """The vocabulary of VTC, saved with the run; built on training rows only where no file is given."""
    if config.objectives.vtc is None:
        return None
    if keep and path.is_file():
        return TagVocabulary.from_file(path)
    if config.data.tags is not None:
        tags = TagVocabulary.from_file(config.data.tags, size=config.data.num_tags)
    else:
        tags = TagVocabulary.build(
            corpus.videos,
            size=config.data.num_tags,
            min_count=config.data.min_tag_count,
            rows=np.concatenate(list(corpus.trainable.values())),
        )
    tags.save(path)
    return tags


if __name__ == "__main__":
    leave(run_entry(main))
