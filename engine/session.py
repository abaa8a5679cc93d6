"""What every training run has around it: its settings, accelerator, folder and reporter, opened and closed together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from vidsim.common.errors import UserError
from vidsim.engine.accelerator import Precision, make_accelerator
from vidsim.engine.loop import Stage, Trainer, TrainResult, train
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.trackers import check_trackers

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Settings that every run has."""

    seed: int = 2021
    """Of initial weights, order and all that is drawn at random."""
    precision: Precision = "fp32"
    """bf16: autocast, weights stay fp32. tf32: fp32 with faster, rounded matrix products on CUDA."""
    trackers: list[str] = field(default_factory=list)
    """wandb, tensorboard or trackio; metrics.jsonl is always written."""
    resume: bool = False
    """Go on from the newest valid checkpoint of `output_dir`."""
    dry_run: bool = False
    """Check everything, print what would be done, touch no device."""

    def validate_session(self) -> None:
        """Refuse an impossible seed and trackers that are not installed."""
        if self.seed < 0:
            raise UserError(f"{self.seed} is below 0", field="seed")
        check_trackers(self.trackers)


class _Settings(Protocol):
    @property
    def yaml(self) -> str: ...


def run_session(
    config: SessionConfig,
    output_dir: str,
    settings: _Settings,
    train: Callable[[RunFolder, Reporter, Accelerator], TrainResult],
) -> int:
    """Open everything, train, close everything. Collective.

    Args:
        config: Of the run.
        output_dir: Its folder.
        settings: Resolved settings, kept in the folder.
        train: Builds the model and trains it.

    Returns:
        Exit status: 0, or 130 where the run was asked to stop and can be resumed.
    """
    accelerator = make_accelerator(config.precision)
    run = RunFolder.create(
        output_dir,
        settings.yaml,
        config.resume,
        world_size=accelerator.num_processes,
        device=str(accelerator.device),
        is_main_process=accelerator.is_main_process,
    )
    # Closed however the run ends, so that a failed one still has its page and flushes its trackers.
    with run, closing(Reporter(run, config.trackers, enabled=accelerator.is_main_process)) as reporter:
        result = train(run, reporter, accelerator)
    if result.interrupted and accelerator.is_main_process:
        print(f"stopped at step {result.step}; go on with --resume", file=sys.stderr)
    return EXIT_INTERRUPTED if result.interrupted else 0


def run_training(
    trainer: Trainer,
    stages: Sequence[Stage],
    to_device: Callable[[dict[str, Any], torch.device], Any],
    *,
    resume: bool,
) -> TrainResult:
    """Go on from the newest checkpoint if that is wanted, train (`engine/loop.py`), say how it ended. Collective."""
    if resume and trainer.resume():
        trainer.reporter.note([f"resumed at step {trainer.progress.step:,}"])
    result = train(trainer, stages, to_device)
    trainer.reporter.note(describe_result(result, trainer.checkpoints))
    trainer.accelerator.wait_for_everyone()
    return result


def describe_result(result: TrainResult, checkpoints: Path) -> list[str]:
    """Lines for the end of a run: how it ended, and which checkpoint to take."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    best = "" if result.best is None else f"; best {result.best:.4f} at step {result.best_step:,}"
    end = f"{'stopped' if result.interrupted else 'done'} at step {result.step:,}: {figures or 'not evaluated'}{best}"
    name = "last" if result.best is None else "best"
    return [end, f"{name} checkpoint: {checkpoints / name}"]
