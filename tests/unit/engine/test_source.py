from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.checkpoint import save_checkpoint
from vidsim.engine.source import checkpoint_of

Saver = Callable[[int, bool], Path]


@pytest.fixture
def save(tmp_path: Path) -> Saver:
    """Save a checkpoint of a step into `tmp_path/run/checkpoints`."""
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def export(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    def write(step: int, is_best: bool) -> Path:
        return save_checkpoint(
            tmp_path / "run/checkpoints",
            step,
            module=module,
            optimizer=optimizer,
            ema=None,
            state={},
            export=export,
            is_best=is_best,
            keep=9,
        )

    return write


def damage(folder: Path) -> None:
    (folder / "config.json").write_text('{"changed": 1}')


def test_a_run_means_its_best_checkpoint(save: Saver, tmp_path: Path) -> None:
    best, _ = save(1, True), save(2, False)
    for path in (tmp_path / "run", tmp_path / "run/checkpoints", tmp_path / "run/checkpoints/best", best):
        assert checkpoint_of(path).resolve() == best


def test_without_a_best_it_means_the_newest_whole_one(save: Saver, tmp_path: Path) -> None:
    older, newest = save(1, False), save(2, False)
    assert checkpoint_of(tmp_path / "run") == newest
    damage(newest)
    assert checkpoint_of(tmp_path / "run") == older


def test_a_damaged_best_is_not_replaced_by_another(save: Saver, tmp_path: Path) -> None:
    best, _, newest = save(1, True), save(2, False), save(3, False)
    damage(best)
    damage(newest)
    fix = r"Fix: name another checkpoint of this run, such as \S*run/checkpoints/step_000002$"
    with pytest.raises(UserError, match=rf"best: is damaged: .*config\.json.*{fix}"):
        checkpoint_of(tmp_path / "run")
    with pytest.raises(UserError, match=rf"step_000003: is damaged: .*config\.json.*{fix}"):
        checkpoint_of(newest)


def test_a_damaged_checkpoint_is_refused(save: Saver) -> None:
    folder = save(1, False)
    damage(folder)
    with pytest.raises(
        UserError, match=r"step_000001: is damaged: .*config\.json.*Fix: no other checkpoint of this run is whole"
    ):
        checkpoint_of(folder)


def test_any_folder_with_a_config_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_of(tmp_path) == tmp_path


@pytest.mark.parametrize(("name", "message"), [("", "holds no checkpoint"), ("nowhere", "no such folder")])
def test_nothing_there(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=message):
        checkpoint_of(tmp_path / name)
