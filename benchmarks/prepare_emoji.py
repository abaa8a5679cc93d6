"""Data sets of animated emoji, English and Chinese, with human-scored pairs.

SRC holds items.jsonl (id, title_*, tags_*, phrases_en, category_id), frames.zip (a strip of square frames for
each id) and pairs_human_dev.tsv (id1, id2, human_score_0_4 of ten people). Writes into DIR:

- en/, zh/: data set folders with the same ids and the same 1280-d EfficientNet-Lite0 features; title = the name,
  tags = the keywords, asr = further text: the keywords, free descriptions (English only) and the names of
  subgroup and group (say so when you report a figure: keywords are read as text, not only predicted),
- en.jsonl, zh.jsonl: the tables that these are converted from,
- pairs.tsv: the pairs, scores scaled to 0..1; pair_ids.txt: their videos, which pretraining can leave out,
- features.npy and features.json: the features.

Run: python benchmarks/prepare_emoji.py SRC --out DIR
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path
from vidsim.data.convert import table
from vidsim.data.pairs import Pairs, write_pairs
from vidsim.data.video.extract import EFFICIENTNET_LITE0, load_extractor
from vidsim.data.video.frames import FrameFolder
from vidsim.data.video.stack import extract_stack

_MAX_SCORE = 4.0


def read_human_pairs(path: Path) -> Pairs:
    """The human scores, scaled from 0..4 to 0..1.

    Raises:
        UserError: Another header, or a score out of range.
    """
    id1, id2, scores = [], [], []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        if not {"id1", "id2", "human_score_0_4"} <= set(reader.fieldnames or ()):
            raise UserError("needs the columns id1, id2, human_score_0_4", file=path)
        for row in reader:
            score = float(row["human_score_0_4"])
            if not 0 <= score <= _MAX_SCORE:
                raise UserError(f"{score} is not within 0 to 4", file=path, record=reader.line_num)
            id1.append(row["id1"])
            id2.append(row["id2"])
            scores.append(score / _MAX_SCORE)
    return Pairs(id1, id2, np.array(scores, dtype=np.float64))


def further_text(item: dict[str, Any], language: str) -> str:
    """Keywords, descriptions, names of subgroup and group; what is said already is left out."""
    parts = [*item[f"tags_{language}"], *item.get(f"phrases_{language}", ())]
    parts += [item[f"subgroup_{language}"], item[f"group_{language}"]]
    seen = {item[f"title_{language}"]}
    kept = []
    for part in parts:
        if part not in seen:
            seen.add(part)
            kept.append(part)
    return (", " if language == "en" else "\uff0c").join(kept)


def write_rows(path: Path, items: Sequence[dict[str, Any]], language: str) -> None:
    """Write the table that the converter reads."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for item in items:
            row = {
                "id": item["id"],
                "title": item[f"title_{language}"],
                "asr": further_text(item, language),
                "tags": item[f"tags_{language}"],
                "category": item["category_id"],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Prepare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--features", type=Path, help="features.npy of an earlier run, instead of extracting again")
    parser.add_argument("--pairs", type=Path, help="another file of human-scored pairs (default: SRC's)")
    parser.add_argument("--extractor", default=EFFICIENTNET_LITE0)
    options = parser.parse_args(argv)
    features = options.features
    if features is None:
        features = options.out / "features.npy"
        num_frames = extract_stack(
            FrameFolder(options.source / "frames.zip"), load_extractor(options.extractor), features
        )
        print(f"{num_frames:,} frames -> {features}")
    lines = (options.source / "items.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines if line]
    for language in ("en", "zh"):
        rows = options.out / f"{language}.jsonl"
        write_rows(rows, items, language)
        table.main([str(rows), "--out", str(options.out / language), "--features", str(features)])
    pairs = read_human_pairs(options.pairs or options.source / "pairs_human_dev.tsv")
    write_pairs(options.out / "pairs.tsv", pairs)
    with atomic_path(options.out / "pair_ids.txt") as temporary:
        temporary.write_text("\n".join(sorted(pairs.unique_ids())) + "\n", encoding="utf-8")
    print(f"{len(pairs):,} human-scored pairs of {len(pairs.unique_ids()):,} videos -> {options.out}/pairs.tsv")
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
