"""One cell of an ablation: pretrain (shared), finetune, embed, Spearman on the test pairs.

Everything lies below `out` under a hash of what it depends on: settings, data, and what came before it. So a changed
setting makes only its own cells anew, and equal settings are computed once, also across lists:
`corpora/HASH`, `pretrained/HASH-seedS`, `cells/HASH-seedS`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json, sha256_file, write_json
from vidsim.data.arrow import concat_videos, open_videos
from vidsim.data.embeddings import read_embeddings
from vidsim.data.pair_cosines import cosines_of_pairs
from vidsim.data.pairs import read_pairs
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.embed import embed
from vidsim.finetune.run import main as finetune
from vidsim.launch.ablation_data import DataFiles, hash_of
from vidsim.launch.ablation_list import Ablation, Fields, Variant
from vidsim.modeling.metrics import spearman
from vidsim.pretrain.run import main as pretrain

_RESULT = "result.json"
# What says where a run is, not what it is.
_PLACES = ("output_dir", "resume", "dry_run", "trackers")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A folder with a result that takes a training.

    Attributes:
        folder: Below `pretrained/` or `cells/`; its name is the hash.
        settings: Complete, with the seed.
    """

    folder: Path
    settings: Fields

    @property
    def result(self) -> dict[str, Any] | None:
        """What came out, once it is finished."""
        file = self.folder / _RESULT
        return read_json(file) if file.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A variant under one seed.

    Attributes:
        variant: Which.
        seed: Of initial weights, order, masks and dropout, in pretraining and finetuning.
        pretraining: Shared by all cells with the same settings; None: finetuning starts from a named checkpoint.
        finetuning: Its result is that of the cell.
        teacher: The cell whose embeddings teach it.
    """

    variant: Variant
    seed: int
    pretraining: Job | None
    finetuning: Job
    teacher: Cell | None

    @property
    def score(self) -> float | None:
        """Spearman on the test pairs, once it is finished."""
        result = self.finetuning.result
        return None if result is None else float(result["test_spearman"])


def plan_cells(ablation: Ablation, out: Path, seeds: int, data: str) -> list[Cell]:
    """All cells of a list, seed after seed, teachers before those they teach.

    Args:
        ablation: The list.
        out: Folder of all results.
        seeds: Seeds 0 to `seeds` - 1.
        data: Fingerprint of the data.
    """
    variants = sorted(ablation.variants, key=lambda variant: variant.teacher is not None)
    cells: list[Cell] = []
    for seed in range(seeds):
        of_seed: dict[str, Cell] = {}
        for variant in variants:
            teacher = of_seed[variant.teacher] if variant.teacher else None
            of_seed[variant.name] = _plan_cell(variant, seed, teacher, out.absolute(), data)
        cells += [of_seed[variant.name] for variant in variants]
    return cells


def _plan_cell(variant: Variant, seed: int, teacher: Cell | None, out: Path, data: str) -> Cell:
    pretraining = None
    if variant.pretrain is not None:
        settings = {**variant.pretrain, "seed": seed}
        pretraining = Job(folder=out / "pretrained" / _name(settings, seed, [data], out), settings=settings)
    settings = {**variant.finetune, "seed": seed}
    depends = [data, pretraining.folder.name if pretraining else _fingerprint(settings["init_from"])]
    if teacher is not None:
        settings["data"] = {**settings["data"], "teacher": str(teacher.finetuning.folder / "teaching")}
    finetuning = Job(folder=out / "cells" / _name(settings, seed, depends, out), settings=settings)
    return Cell(variant=variant, seed=seed, pretraining=pretraining, finetuning=finetuning, teacher=teacher)


def _name(settings: Fields, seed: int, depends: list[str], out: Path) -> str:
    plain = json.dumps({name: value for name, value in settings.items() if name not in _PLACES}, sort_keys=True)
    return f"{hash_of([plain.replace(str(out), 'out'), depends])}-seed{seed}"


@cache
def _fingerprint(checkpoint: str) -> str:
    """Of the weights that all cells start from."""
    return sha256_file(checkpoint_of(Path(checkpoint)) / "model.safetensors")


def run_pretraining(job: Job) -> None:
    """Pretrain, or go on with a pretraining that was cut off.

    Raises:
        UserError: It cannot be done.
        KeyboardInterrupt: It was asked to stop; it goes on from there.
    """
    run = _Run(job)
    run.command(pretrain, "run")
    run.finish({})


def run_cell(cell: Cell, files: DataFiles) -> None:
    """Finetune, embed, score; the pretraining and the teacher must be finished. Raises as `run_pretraining`."""
    job = cell.finetuning
    run = _Run(job)
    start = ["--init_from", str(cell.pretraining.folder / "run")] if cell.pretraining else []
    run.command(finetune, "run", *start)
    test = [read_pairs(name) for name in files.test]
    test_ids = [id for pairs in test for id in pairs.unique_ids()]
    with run.log():
        _embed(job.folder, files.test_videos, test_ids, "test")
        _embed(job.folder, files.videos, read_pairs(files.train).unique_ids(), "teaching")
    embeddings = read_embeddings(job.folder / "test")
    cosines = np.concatenate([cosines_of_pairs(embeddings, pairs) for pairs in test])
    try:
        value = spearman(cosines, np.concatenate([pairs.score for pairs in test]))
    except ValueError as error:
        raise UserError(f"the model cannot be scored: {error}") from error
    run.finish({"test_spearman": value})
    for folder in (job.folder / "run/checkpoints", job.folder / "test"):
        shutil.rmtree(folder, ignore_errors=True)


def _embed(folder: Path, data: list[str], ids: list[str], name: str) -> None:
    videos = concat_videos([open_videos(each) for each in data])
    rows = videos.rows_of(list(dict.fromkeys(ids)))
    embed(checkpoint_of(folder / "run"), videos, rows, folder / name, {}, overwrite=True)


class _Run:
    """The folder of a job while it runs: begun afresh, unless the same settings were begun here before."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._recipe = job.folder / "recipe.yaml"
        text = yaml.safe_dump(job.settings, sort_keys=False, allow_unicode=True)
        # A cell that goes on after it was cut off says nothing about the time that one takes.
        self._is_resumed = self._recipe.is_file() and self._recipe.read_text(encoding="utf-8") == text
        if not self._is_resumed:
            shutil.rmtree(job.folder, ignore_errors=True)
            job.folder.mkdir(parents=True)
            with atomic_path(self._recipe) as temporary:
                temporary.write_text(text, encoding="utf-8")
        self._start = time.monotonic()

    def command(self, main: Callable[[list[str]], int], name: str, *options: str) -> None:
        """Run an entry point into a folder; what it says goes to the log."""
        arguments = ["--config", str(self._recipe), *options, "--output_dir", str(self.job.folder / name), "--resume"]
        with self.log():
            code = main(arguments)
        if code:
            raise KeyboardInterrupt

    @contextmanager
    def log(self) -> Iterator[None]:
        """Send what is printed to `log.txt`."""
        file = (self.job.folder / "log.txt").open("a", encoding="utf-8")
        with file, redirect_stdout(file), redirect_stderr(file):
            yield

    def finish(self, result: dict[str, Any]) -> None:
        """Write down the result and the seconds it took."""
        seconds = None if self._is_resumed else round(time.monotonic() - self._start, 2)
        write_json(self.job.folder / _RESULT, {**result, "seconds": seconds})
