"""The loop on a model of two numbers, whose steps can be worked out by hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.adversarial import FgmConfig
from vidsim.engine.balance import BalanceConfig, LossBalancer
from vidsim.engine.ema import EmaConfig, ExponentialMovingAverage
from vidsim.engine.loop import Hooks, Stage, Trainer, TrainResult, train
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.metrics_file import read_metrics
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.schedule import ScheduleConfig

CONSTANT = ScheduleConfig(kind="constant", warmup_fraction=0.0)
Batch = dict[str, Any]


class Toy(nn.Module):
    """Named losses: the mean over the window of `x · weight`, and of `x · weight²`."""

    def __init__(self, start: Sequence[float] = (1.0, 2.0)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))

    def windows(self, batches: Sequence[Batch], step: int) -> list[int]:
        return [sum(len(batch["x"]) for batch in batches)] * len(batches)

    def forward(self, batch: Batch, window: int) -> dict[str, torch.Tensor]:
        x = batch["x"]
        return {"linear": (x @ self.weight).sum() / window, "square": (x @ self.weight.square()).sum() / window}


class SmallRun:
    """A run in a folder, with what happened in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = Toy()
        self.evaluated: list[list[float]] = []
        self.exported: list[list[float]] = []
        self.figures: list[dict[str, float]] = []
        self.scores: Iterator[float] = iter(())

    def trainer(
        self,
        *,
        rate: float = 1.0,
        weights: dict[str, float] | None = None,
        adam: bool = False,
        ema: float | None = None,
        fgm: FgmConfig | None = None,
        select: str | None = "score",
        select_mode: Any = "max",
        resume: bool = False,
        balance: BalanceConfig | None = None,
        **config: Any,
    ) -> Trainer:
        run = RunFolder.create(self.folder, "a: 1\n", resume)
        group = {"params": [self.module.weight], "lr": rate, "base_lr": rate}
        optimizer: torch.optim.Optimizer = torch.optim.SGD([group])
        if adam:
            optimizer = torch.optim.AdamW([group], weight_decay=0.0)

        def evaluate() -> dict[str, float]:
            assert not self.module.training
            assert not torch.is_grad_enabled()
            self.evaluated.append(self.module.weight.tolist())
            return {"score": next(self.scores, 0.0)}

        trainer = Trainer(
            accelerator=make_accelerator("fp32"),
            module=self.module,
            optimizer=optimizer,
            balancer=LossBalancer(
                balance or BalanceConfig(), weights or {"linear": 1.0, "square": 0.0}, [self.module.weight]
            ),
            config=LoopConfig(**{"log_every_steps": 1, "max_grad_norm": None, **config}),
            hooks=Hooks(evaluate=evaluate, export=self.export, select=select, select_mode=select_mode),
            reporter=Reporter(run, [], enabled=True),
            checkpoints=run.checkpoints,
            seed=0,
            ema=ExponentialMovingAverage(self.module, EmaConfig(decay=ema)) if ema else None,
            fgm=fgm,
        )
        if resume:
            assert trainer.resume()
        run.close()
        return trainer

    def export(self, folder: Path, metrics: dict[str, float]) -> None:
        self.exported.append(self.module.weight.tolist())
        self.figures.append(metrics)

    def lines(self, key: str) -> list[float]:
        return [line[key] for line in read_metrics(self.folder / "metrics.jsonl") if key in line]

    def steps(self, key: str) -> list[int]:
        return [int(line["step"]) for line in read_metrics(self.folder / "metrics.jsonl") if key in line]


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return SmallRun(tmp_path / "run")


def rows(*values: tuple[float, float], per_step: int = 1) -> Callable[[int], list[Batch]]:
    """Micro-batches of one row each, from a step on."""
    batches = [{"x": torch.tensor([value]), "row_ids": [f"row {i}"]} for i, value in enumerate(values)]
    return lambda step: batches[step * per_step :]


def stage(*values: tuple[float, float], schedule: ScheduleConfig = CONSTANT) -> Stage:
    return Stage(num_steps=len(values), schedule=schedule, batches=rows(*values))


def go(trainer: Trainer, *stages: Stage) -> TrainResult:
    return train(trainer, stages, lambda batch, device: batch)


def test_stages_restart_the_learning_rate_and_keep_the_moments(run: SmallRun) -> None:
    """4 steps with a linear fall after 2 of warm-up, then 4 with 1: the same as Adam stepped by hand."""
    first = [(1.0, -1.0), (2.0, 0.5), (-1.0, 3.0), (0.5, 0.5)]
    second = [(1.0, 1.0), (-3.0, 1.0), (2.0, 2.0), (1.0, -2.0)]
    rates = [0.5, 1.0, 1.0, 0.5, 1.0, 1.0, 2 / 3, 1 / 3]
    trainer = run.trainer(rate=0.1, adam=True)
    result = go(
        trainer,
        stage(*first, schedule=ScheduleConfig(kind="linear", warmup_fraction=0.5)),
        stage(*second, schedule=ScheduleConfig(kind="linear", warmup_fraction=0.25)),
    )
    assert result.step == 8
    assert run.lines("learning_rate") == pytest.approx([0.1 * rate for rate in rates])
    expected = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.AdamW([expected], weight_decay=0.0)
    for gradient, rate in zip(first + second, rates, strict=True):
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        expected.grad = torch.tensor(gradient)
        optimizer.step()
    torch.testing.assert_close(run.module.weight, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("limit", "after"), [(1.0, [0.4, 1.2]), (None, [-2.0, -2.0]), (6.0, [-2.0, -2.0])])
def test_clipping(run: SmallRun, limit: float | None, after: list[float]) -> None:
    """The gradient (3, 4) has norm 5, which is logged as it was before clipping."""
    go(run.trainer(max_grad_norm=limit), stage((3.0, 4.0)))
    assert run.module.weight.tolist() == pytest.approx(after, abs=1e-5)
    assert run.lines("grad_norm") == [5.0]


@pytest.mark.parametrize("bad", [(float("nan"), 0.0), (float("inf"), 1.0)])
def test_a_loss_that_is_not_finite_stops_before_the_update(run: SmallRun, bad: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"step 2: not finite: linear (nan|inf), .*: row 2\."):
        go(run.trainer(checkpoint_every_steps=1), stage((1.0, 0.0), (0.0, 0.0), bad))
    assert run.module.weight.tolist() == [0.0, 2.0]
    assert run.steps("loss") == [1, 2]


def test_a_gradient_that_is_not_finite_stops_before_the_update(run: SmallRun) -> None:
    """Square root at 0: the value is 0, its slope is infinite."""

    class Root(Toy):
        def forward(self, batch: Batch, window: int) -> dict[str, torch.Tensor]:
            return {"root": (batch["x"] @ self.weight).sqrt().sum()}

    run.module = Root((0.0, 2.0))
    with pytest.raises(UserError, match=r"root 0, gradient norm (inf|nan); rows of this process: row 0"):
        go(run.trainer(weights={"root": 1.0}), stage((1.0, 0.0)))
    assert run.module.weight.tolist() == [0.0, 2.0]


def test_only_the_first_ids_are_shown(run: SmallRun) -> None:
    batch = {"x": torch.full((10, 2), torch.nan), "row_ids": [f"id{i}" for i in range(10)]}
    with pytest.raises(UserError, match=r"rows of this process: id0, .*id7 and 2 more"):
        go(run.trainer(), Stage(num_steps=1, schedule=CONSTANT, batches=lambda start: [batch]))


def test_a_metric_that_is_not_finite_stops(run: SmallRun) -> None:
    run.scores = iter([float("nan")])
    with pytest.raises(UserError, match="step 1: score is nan"):
        go(run.trainer(), stage((0.0, 0.0)))
    assert run.lines("score") == []


def test_logged_are_means_since_the_last_line(run: SmallRun) -> None:
    """Rate 0 keeps the weight (1, 2): linear is 1, 2, 3, 4, 5 and square as well, times weights 2 and 10."""
    values = [(float(number), 0.0) for number in range(1, 6)]
    go(run.trainer(rate=0.0, weights={"linear": 2.0, "square": 10.0}, log_every_steps=2), stage(*values))
    assert run.steps("loss") == [2, 4, 5]
    assert run.lines("loss/linear") == pytest.approx([1.5, 3.5, 5.0])
    assert run.lines("loss/square") == pytest.approx([1.5, 3.5, 5.0])
    assert run.lines("loss") == pytest.approx([18.0, 42.0, 60.0])
    # The gradient of 2 · linear + 10 · square at weight 1 is 2x + 20x.
    assert run.lines("grad_norm") == pytest.approx([33.0, 77.0, 110.0])


@pytest.mark.parametrize(("every", "expected"), [(3, [3, 6, 7]), (7, [7]), (None, [7])])
def test_the_last_step_is_always_evaluated(run: SmallRun, every: int | None, expected: list[int]) -> None:
    result = go(run.trainer(eval_every_steps=every, max_steps=7), stage(*[(0.0, 0.0)] * 9))
    assert result.step == 7
    assert run.steps("score") == expected


def test_no_step_saves_the_untrained_module(run: SmallRun) -> None:
    run.scores = iter([0.25])
    result = go(run.trainer(max_steps=0), stage((1.0, 1.0)))
    assert (result.step, result.best, result.best_step, result.interrupted) == (0, 0.25, 0, False)
    assert run.evaluated == run.exported == [[1.0, 2.0]]
    assert (run.folder / "checkpoints/best").resolve().name == "step_000000"
    # Resumed it has nothing left to do.
    again = SmallRun(run.folder)
    assert go(again.trainer(max_steps=0, resume=True), stage((1.0, 1.0))).best == 0.25
    assert again.evaluated == []


def test_the_average_is_evaluated_and_exported_the_raw_weights_are_trained(run: SmallRun) -> None:
    """Updates 0 and 1 keep 1/10 and 2/11 of the average: 1 -> .1·1 + .9·0 = .1 -> (2·.1 + 9·(-1)) / 11 = -.8."""
    go(run.trainer(ema=0.999, eval_every_steps=1), stage((1.0, 0.0), (1.0, 0.0)))
    assert run.evaluated[0] == pytest.approx([0.1, 2.0])
    assert run.evaluated[1] == pytest.approx([-0.8, 2.0])
    assert run.exported == run.evaluated
    assert run.module.weight.tolist() == pytest.approx([-1.0, 2.0])


def test_fgm_adds_the_gradient_at_the_attacked_weights(run: SmallRun) -> None:
    """x·w² at (1, 2), x = (1, 0): gradient (2, 0), the attack moves to (1.5, 2), gradient (3, 0); together 5."""
    fgm = FgmConfig(epsilon=0.5, parameter="weight")
    go(run.trainer(rate=0.1, weights={"linear": 0.0, "square": 1.0}, fgm=fgm), stage((1.0, 0.0)))
    assert run.module.weight.tolist() == pytest.approx([0.5, 2.0])
    assert run.lines("loss") == pytest.approx([1.0])  # the clean pass
    assert run.lines("grad_norm") == pytest.approx([5.0])


@pytest.mark.parametrize(
    ("mode", "select", "best", "step"), [("max", "score", 0.5, 2), ("min", "score", 0.3, 1), ("max", None, None, 4)]
)
def test_the_best_checkpoint(run: SmallRun, mode: str, select: str | None, best: float | None, step: int) -> None:
    """A tie does not replace the earlier one; without a metric the last is the best."""
    run.scores = iter([0.3, 0.5, 0.5, 0.4])
    trainer = run.trainer(eval_every_steps=1, keep_checkpoints=2, select=select, select_mode=mode)
    result = go(trainer, stage(*[(0.0, 0.0)] * 4))
    assert (result.best, result.best_step) == (best, step)
    assert (run.folder / "checkpoints/best").resolve().name == f"step_{step:06d}"
    assert (run.folder / "checkpoints/last").resolve().name == "step_000004"
    assert result.metrics == {"score": 0.4}


@pytest.mark.parametrize(("every", "kept"), [(None, {2, 4, 5}), (3, {2, 3, 4, 5})])
def test_checkpoints_come_at_each_evaluation_or_when_asked(run: SmallRun, every: int | None, kept: set[int]) -> None:
    run.scores = iter([1.0, 2.0, 3.0])
    trainer = run.trainer(eval_every_steps=2, checkpoint_every_steps=every, keep_checkpoints=9)
    go(trainer, stage(*[(0.0, 0.0)] * 5))
    assert {int(path.name[5:]) for path in (run.folder / "checkpoints").glob("step_*")} == kept


def test_a_checkpoint_has_figures_of_its_own_weights_or_none(run: SmallRun) -> None:
    run.scores = iter([1.0, 2.0])
    go(run.trainer(eval_every_steps=2, checkpoint_every_steps=1), stage(*[(0.0, 0.0)] * 4))
    assert run.figures == [{}, {"score": 1.0}, {}, {"score": 2.0}]


def test_losses_are_measured_every_so_many_steps_and_balanced(run: SmallRun) -> None:
    """x·w and x·w² at w = (1, 0): gradients (1, 0) and (2, 0), so the factors are √2 and 1/√2; rate 0 keeps w."""
    run.module = Toy((1.0, 0.0))
    measured = []
    trainer = run.trainer(
        rate=0.0,
        weights={"linear": 1.0, "square": 1.0},
        balance=BalanceConfig(mode="gradient_norm", every_steps=2),
    )
    measure = trainer.balancer.measure

    def count(losses: Any) -> None:
        measured.append(trainer.progress.step)
        measure(losses)

    trainer.balancer.measure = count  # type: ignore[method-assign]
    go(trainer, stage(*[(1.0, 0.0)] * 5))
    assert measured == [0, 2, 4]
    assert run.lines("weight/linear") == pytest.approx([2**0.5] * 5)
    assert run.lines("weight/square") == pytest.approx([0.5**0.5] * 5)
    assert run.lines("gradient_norm/square") == pytest.approx([2.0] * 5)
    assert run.lines("loss") == pytest.approx([2**0.5 + 0.5**0.5] * 5)


@pytest.mark.parametrize(("settings", "rows_a_step"), [({"micro_batch_size": 3}, 3), ({"micro_batch_tokens": 50}, 1)])
def test_the_speed_is_that_of_training(
    run: SmallRun, settings: dict[str, Any], rows_a_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by 1 s in each step and by 100 s in each evaluation; by tokens, rows are counted."""
    now = [0.0]
    monkeypatch.setattr("vidsim.engine.loop.time.monotonic", lambda: now[0])

    class Slow(Toy):
        def forward(self, batch: Batch, window: int) -> dict[str, torch.Tensor]:
            now[0] += 1.0
            return super().forward(batch, window)

    run.module = Slow()
    trainer = run.trainer(eval_every_steps=1, log_every_steps=2, **settings)
    evaluate = trainer.evaluate

    def slow_evaluate() -> bool:
        now[0] += 100.0
        return evaluate()

    trainer.evaluate = slow_evaluate  # type: ignore[method-assign]
    go(trainer, stage(*[(0.0, 0.0)] * 4))
    assert run.lines("examples_per_second") == [rows_a_step, rows_a_step]


def test_all_processes_go_on_from_the_same_checkpoint(run: SmallRun) -> None:
    go(run.trainer(), stage((0.0, 0.0)))
    again = SmallRun(run.folder).trainer(resume=True)

    class Gathers:
        device = torch.device("cpu")

        def gather(self, own: torch.Tensor) -> torch.Tensor:
            return torch.cat([own, torch.tensor([-1])])

    again.accelerator = Gathers()  # type: ignore[assignment]
    with pytest.raises(UserError, match="do not see the same newest checkpoint"):
        again.resume()


def test_micro_batches_are_one_batch(tmp_path: Path) -> None:
    whole, split = SmallRun(tmp_path / "whole"), SmallRun(tmp_path / "split")
    values = [(3.0, 1.0), (-1.0, 0.5), (2.0, 2.0), (0.0, 4.0)]
    big = [{"x": torch.tensor(values[:2])}, {"x": torch.tensor(values[2:])}]
    weights = {"linear": 0.5, "square": 0.25}
    go(whole.trainer(rate=0.1, weights=weights), Stage(num_steps=2, schedule=CONSTANT, batches=lambda start: big))
    trainer = split.trainer(rate=0.1, weights=weights, gradient_accumulation_steps=2)
    go(trainer, Stage(num_steps=2, schedule=CONSTANT, batches=rows(*values, per_step=2)))
    torch.testing.assert_close(split.module.weight, whole.module.weight)
    assert split.lines("loss") == pytest.approx(whole.lines("loss"))


def test_randomness_follows_seed_step_and_micro_step(tmp_path: Path) -> None:
    class Noisy(Toy):
        def forward(self, batch: Batch, window: int) -> dict[str, torch.Tensor]:
            drawn.append(torch.rand(()).item())
            return super().forward(batch, window)

    draws: list[list[float]] = []
    for number in range(2):
        drawn: list[float] = []
        small = SmallRun(tmp_path / str(number))
        small.module = Noisy()
        torch.manual_seed(number)  # what was drawn before does not matter
        trainer = small.trainer(gradient_accumulation_steps=2)
        go(trainer, Stage(num_steps=3, schedule=CONSTANT, batches=rows(*[(0.0, 0.0)] * 6, per_step=2)))
        draws.append(drawn)
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 6


def interrupted(stages: Sequence[Stage], step: int) -> list[Stage]:
    """The stages, with Ctrl-C while the batch of a step of the first is made; the second is then not asked."""

    def batches(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(stages[0].batches(start), start):
            if number == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    def never(start: int) -> list[Batch]:
        raise AssertionError(f"the second stage was asked for step {start}")

    return [
        Stage(num_steps=stages[0].num_steps, schedule=stages[0].schedule, batches=batches),
        Stage(num_steps=stages[1].num_steps, schedule=stages[1].schedule, batches=never),
    ]


@pytest.mark.parametrize("mode", ["fixed", "gradient_norm"])
@pytest.mark.parametrize("half_replaced", [False, True])
def test_ctrl_c_saves_and_resuming_gives_the_straight_run(tmp_path: Path, half_replaced: bool, mode: Any) -> None:
    values = [(1.0, -1.0), (2.0, 0.5), (-1.0, 3.0), (0.5, 0.5), (1.0, 1.0)]
    stages = [stage(*values), stage(*values[::-1])]
    balance = BalanceConfig(mode=mode, every_steps=2)
    weights = {"linear": 1.0, "square": 0.1}
    settings: dict[str, Any] = {"rate": 0.1, "adam": True, "ema": 0.5, "eval_every_steps": 4, "balance": balance}
    settings["weights"] = weights
    straight, stopped, resumed = (SmallRun(tmp_path / name) for name in ("straight", "stopped", "stopped"))
    go(straight.trainer(**settings), *stages)
    result = go(stopped.trainer(**settings), *interrupted(stages, 2))
    assert (result.step, result.interrupted) == (3, True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if half_replaced:  # killed while a checkpoint of the same step took its place
        folder = stopped.folder / "checkpoints/step_000003"
        folder.rename(folder.with_name("step_000003.replaced"))
    result = go(resumed.trainer(**settings, resume=True), *stages)
    assert (result.step, result.interrupted) == (10, False)
    assert torch.equal(resumed.module.weight, straight.module.weight)
    assert len(straight.lines("weight/square")) == (10 if mode == "gradient_norm" else 0)
    for key in ("loss", "loss/square", "grad_norm", "score", "learning_rate", "weight/square"):
        assert resumed.lines(key) == straight.lines(key)
        assert resumed.steps(key) == straight.steps(key)


def test_a_second_ctrl_c_interrupts_at_once(run: SmallRun) -> None:
    def batches(start: int) -> Iterator[Batch]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield {"x": torch.zeros(1, 2)}

    with pytest.raises(KeyboardInterrupt):
        go(run.trainer(), Stage(num_steps=1, schedule=CONSTANT, batches=batches))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("micro_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("max_steps", -1),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", float("nan")),
        ("log_every_steps", 0),
        ("eval_every_steps", 0),
        ("checkpoint_every_steps", 0),
        ("keep_checkpoints", 0),
        ("eval_batch_size", 0),
        ("num_workers", -1),
    ],
)
def test_settings_that_cannot_work_are_refused(field: str, value: Any) -> None:
    LoopConfig(max_steps=0, max_grad_norm=None, num_workers=0).validate()
    with pytest.raises(UserError, match=rf"field 'loop\.{field}'"):
        LoopConfig(**{field: value}).validate()
