"""The training loop: one function for pretraining and finetuning, in optimizer steps.

What a step does: fetch its micro-batches, let the module look at all of them at once (so that means are over the
whole global batch, however it is split over ranks and micro-batches), forward and backward each, check that
everything is finite, clip, step. Randomness is a function of (seed, step, micro-step, rank) and the learning rate
one of the step, so a checkpoint needs neither a random state nor a scheduler state and a resumed run is the straight
run to the bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine import checkpoint, schedule, sharding
from vidsim.engine.adversarial import FgmConfig, attacked
from vidsim.engine.balance import LossBalancer
from vidsim.engine.ema import ExponentialMovingAverage
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.reporting import Reporter
from vidsim.engine.seeding import seed_step
from vidsim.engine.stopping import stop_flag


class TrainModule(Protocol):
    """What the loop trains: any `nn.Module` with these."""

    def windows(self, batches: Sequence[dict[str, Any]], step: int) -> Sequence[Any]:
        """See all micro-batches of a step before the first forward: what each must know. Collective."""

    def __call__(self, batch: dict[str, Any], window: Any) -> dict[str, torch.Tensor]:
        """Named losses; summed over micro-batches and ranks they are the losses of the global batch."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with its own data and its own schedule."""

    num_steps: int
    schedule: schedule.ScheduleConfig
    batches: Callable[[int], Iterable[dict[str, Any]]]
    """From the first step wanted to the micro-batches of this rank, already in order."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a run does besides stepping."""

    evaluate: Callable[[], dict[str, float]]
    """Metrics of the module as it is now. Collective."""
    export: Callable[[Path, dict[str, float]], None]
    """Write the module for users, with its metrics if it was just evaluated, into a folder; called on the first
    process only."""
    select: str | None
    """Metric that chooses the best checkpoint; None: the last one is the best."""
    select_mode: Literal["max", "min"] = "max"


@dataclass(kw_only=True)
class Progress:
    """Where a run is; all of it is JSON and goes into each checkpoint."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    sums: dict[str, float] | None = None
    num_summed: int = 0
    metrics: dict[str, float] | None = None
    evaluated_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    step: int
    best: float | None
    best_step: int | None
    metrics: dict[str, float]
    interrupted: bool


class Trainer:
    """Everything a run holds on to; `train` below drives it.

    Args:
        accelerator: From `engine.accelerator`.
        module: What is trained, not yet wrapped.
        optimizer: Over its parameters; groups carry `base_lr`.
        balancer: Weights of the losses.
        config: Length and cadence.
        hooks: Evaluation and export.
        reporter: Writes metrics.
        checkpoints: Folder of the checkpoints.
        seed: Seed of the run.
        ema: Moving average of the parameters, used for evaluation and export.
        fgm: Adversarial second pass (fast gradient method).
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        balancer: LossBalancer,
        config: LoopConfig,
        hooks: Hooks,
        reporter: Reporter,
        checkpoints: Path,
        seed: int,
        ema: ExponentialMovingAverage | None = None,
        fgm: FgmConfig | None = None,
    ) -> None:
        """Wrap the module for this number of processes."""
        if config.sharded:
            sharding.check_sharding(
                module,
                accelerator.num_processes,
                {
                    "loop.compile": config.compile,
                    "ema": ema is not None,
                    "fgm": fgm is not None,
                    "balance": balancer.measures,
                },
            )
        self.accelerator = accelerator
        self.module = module
        self.wrapped: Any = (
            sharding.shard(module, optimizer, accelerator) if config.sharded else accelerator.prepare_model(module)
        )
        self.optimizer = optimizer
        self.balancer = balancer
        self.config = config
        self.hooks = hooks
        self.reporter = reporter
        self.checkpoints = checkpoints
        self.seed = seed
        self.ema = ema
        self.fgm = fgm
        self.progress = Progress()
        if config.sharded:
            reporter.note([sharding.describe(module)])

    def resume(self) -> bool:
        """Load the newest valid checkpoint, if there is one. Collective."""
        folder = checkpoint.newest_valid(self.checkpoints)
        found = torch.tensor([_step_of(folder)], device=self.accelerator.device)
        if len(set(self.accelerator.gather(found).tolist())) > 1:
            raise UserError(
                "the processes do not see the same newest checkpoint",
                file=self.checkpoints,
                fix="put the run folder on a disk that all machines share",
            )
        if folder is None:
            return False
        state = checkpoint.load_checkpoint(folder, self.module, self.optimizer, self.ema)
        self.progress = Progress(**state["progress"])
        self.balancer.load_state(state["balance"])
        self.reporter.rewind(self.progress.step)
        return True

    def save(self, *, is_best: bool) -> None:
        """Write a checkpoint on the first process; the others wait. Collective."""
        is_main_process = self.accelerator.is_main_process
        progress = self.progress
        # Figures of other weights would say nothing of these.
        metrics = progress.metrics if progress.evaluated_step == progress.step else None
        gathered = sharding.gathered(self.module, self.optimizer, is_main_process=is_main_process)
        with gathered if self.config.sharded else contextlib.nullcontext():
            if is_main_process:
                checkpoint.save_checkpoint(
                    self.checkpoints,
                    progress.step,
                    module=self.module,
                    optimizer=self.optimizer,
                    ema=self.ema,
                    state={"progress": vars(progress), "balance": self.balancer.state()},
                    export=lambda folder: self.hooks.export(folder, metrics or {}),
                    is_best=is_best,
                    keep=self.config.keep_checkpoints,
                )
        self.accelerator.wait_for_everyone()

    def evaluate(self) -> bool:
        """Evaluate, log, and say whether this is the best so far. Collective."""
        self.module.eval()
        with torch.no_grad(), self.ema.applied(self.module) if self.ema else contextlib.nullcontext():
            metrics = self.hooks.evaluate()
        self.module.train()
        progress = self.progress
        for name, value in metrics.items():
            if not _is_finite(value):
                raise UserError(f"step {progress.step}: {name} is {value:g}", fix="lower the learning rate")
        progress.metrics, progress.evaluated_step = metrics, progress.step
        self.reporter.log(progress.step, metrics)
        if self.hooks.select is None:
            progress.best_step = progress.step
            return True
        value = metrics[self.hooks.select]
        sign = 1.0 if self.hooks.select_mode == "max" else -1.0
        is_best = progress.best is None or sign * value > sign * progress.best
        if is_best:
            progress.best, progress.best_step = value, progress.step
        return is_best

    def backward(
        self, step: int, batches: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Gradients of one step: every micro-batch forward and backward, synchronised with the last one.

        Returns:
            The global losses (detached, the same on every rank) and the weights they were summed with.
        """
        windows = cast(TrainModule, self.module).windows(batches, step)
        world_size = self.accelerator.num_processes
        totals: dict[str, torch.Tensor] = {}
        for micro_step, (batch, window) in enumerate(zip(batches, windows, strict=True)):
            is_last = micro_step == len(batches) - 1
            seed_step(self.seed, step, micro_step, self.accelerator.process_index)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                losses = self.wrapped(batch, window)
                if micro_step == 0 and self.balancer.is_due(step):
                    self.balancer.measure(losses)
                weights = self.balancer.current()
                # DDP averages gradients over ranks, the losses are parts of a global sum: undo the average.
                self.accelerator.backward(weighted_sum(losses, weights) * world_size)
                if self.fgm is not None:
                    with attacked(self.module, self.fgm):
                        attack = weighted_sum(self.wrapped(batch, window), weights)
                        self.accelerator.backward(attack * world_size)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + loss.detach().float()
        reduced = self.accelerator.reduce(torch.stack(list(totals.values())), reduction="sum")
        return dict(zip(totals, reduced, strict=True)), weights

    def step(self, batches: Sequence[dict[str, Any]], rate: float) -> None:
        """One optimizer step.

        Raises:
            UserError: A loss or gradient is not finite; the parameters keep their values.
        """
        progress = self.progress
        schedule.apply(self.optimizer, rate)
        losses, weights = self.backward(progress.step, batches)
        limit = self.config.max_grad_norm
        parameters = list(self.module.parameters())
        norm = sharding.whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        values = [*losses.values(), norm.to(next(iter(losses.values())).device)]
        *loss_values, grad_norm = torch.stack(values).double().tolist()
        if not all(map(_is_finite, [*loss_values, grad_norm])):
            raise self._not_finite(dict(zip(losses, loss_values, strict=True)), grad_norm, batches)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module)
        progress.step += 1
        named = dict(zip(losses, loss_values, strict=True))
        total = sum(weights[name] * value for name, value in named.items())
        sums = progress.sums or {}
        for name, value in {
            "loss": total,
            **{f"loss/{k}": v for k, v in named.items()},
            "grad_norm": grad_norm,
        }.items():
            sums[name] = sums.get(name, 0.0) + value
        progress.sums = sums
        progress.num_summed += 1

    def log(self, seconds: float, num_examples: int) -> None:
        """Write the means since the last line."""
        progress = self.progress
        metrics = {name: value / progress.num_summed for name, value in (progress.sums or {}).items()}
        metrics["learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)
        if self.balancer.norms:
            metrics |= {f"gradient_norm/{name}": norm for name, norm in self.balancer.norms.items()}
            metrics |= {f"weight/{name}": weight for name, weight in self.balancer.current().items()}
        progress.sums, progress.num_summed = None, 0
        self.reporter.log(progress.step, metrics, seconds=seconds, num_examples=num_examples)

    def _not_finite(
        self, losses: Mapping[str, float], grad_norm: float, batches: Sequence[dict[str, Any]]
    ) -> UserError:
        ids = [row_id for batch in batches for row_id in batch.get("row_ids", [])]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        parts = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        values = f"{parts}, gradient norm {grad_norm:g}"
        return UserError(
            f"step {self.progress.step}: not finite: {values}; rows of this process: {shown}",
            fix="lower the learning rate, or look for damage in the data with `vidsim verify`",
        )


def weighted_sum(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Σ weight · loss."""
    return torch.stack([loss.float() * weights[name] for name, loss in losses.items()]).sum()


def _step_of(folder: Path | None) -> int:
    return -1 if folder is None else int(folder.name.removeprefix("step_").removesuffix(".replaced"))


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def _take(batches: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [next(batches) for _ in range(count)]


def _num_rows(batches: Sequence[dict[str, Any]], config: LoopConfig) -> int:
    if config.micro_batch_tokens is None:
        return len(batches) * config.micro_batch_size
    return sum(len(batch["row_ids"]) for batch in batches)


def train(
    trainer: Trainer, stages: Sequence[Stage], to_device: Callable[[dict[str, Any], torch.device], Any]
) -> TrainResult:
    """Run all stages from where `trainer.progress` is to the end. Collective.

    Args:
        trainer: Fresh, or after `resume`.
        stages: Walked through in order; the learning rate starts anew in each, the optimizer's moments stay.
        to_device: Moves a batch.

    Returns:
        Last metrics, the best, and whether the run was asked to stop early (it then can be resumed).
    """
    config, progress, accelerator = trainer.config, trainer.progress, trainer.accelerator
    ends = [sum(stage.num_steps for stage in stages[: index + 1]) for index in range(len(stages))]
    last_step = min(ends[-1], config.max_steps) if config.max_steps is not None else ends[-1]
    eval_every = config.eval_every_steps or max(last_step, 1)
    checkpoint_every = config.checkpoint_every_steps or eval_every
    trainer.reporter.start(progress.step, last_step)
    trainer.module.train()
    if last_step == 0 and progress.metrics is None:
        trainer.save(is_best=trainer.evaluate())

    logged_at, num_examples = time.monotonic(), 0
    stop = False
    with stop_flag() as flag:
        for stage, end in zip(stages, ends, strict=True):
            start = end - stage.num_steps
            if stop or progress.step >= min(end, last_step):
                continue
            batches = iter(stage.batches(progress.step - start))
            while progress.step < min(end, last_step) and not stop:
                window = [
                    to_device(batch, accelerator.device) for batch in _take(batches, config.gradient_accumulation_steps)
                ]
                num_examples += _num_rows(window, config) * accelerator.num_processes
                trainer.step(window, schedule.multiplier(stage.schedule, progress.step - start, stage.num_steps))
                # A signal may reach the ranks at different steps: they stop together.
                stop = bool(accelerator.reduce(torch.tensor(len(flag), device=accelerator.device), "sum").item())
                is_end = progress.step == last_step
                if progress.step % config.log_every_steps == 0 or is_end:
                    now = time.monotonic()
                    trainer.log(now - logged_at, num_examples)
                    logged_at, num_examples = now, 0
                began = time.monotonic()
                is_best = (progress.step % eval_every == 0 or is_end) and trainer.evaluate()
                if is_best or is_end or stop or progress.step % checkpoint_every == 0:
                    trainer.save(is_best=is_best)
                logged_at += time.monotonic() - began  # the speed shown is that of training
    return TrainResult(
        step=progress.step,
        best=progress.best,
        best_step=progress.best_step,
        metrics=progress.metrics or {},
        interrupted=stop and progress.step < last_step,
    )
