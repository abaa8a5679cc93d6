"""Build the bundled sample from a folder of animated emoji: `python -m vidsim.data.sample.build SRC`.

SRC holds `items.jsonl` (id, title_en, title_zh, tags_en, tags_zh, phrases_en, group_en, group_zh, subgroup_en,
subgroup_zh, category_id) and `frames.zip` (a strip of square frames for each id). The same SRC gives the same files,
the last bit of a feature excepted, which may depend on the processor.

The pairs carry **computed grades**, not human judgements: see `grade`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path
from vidsim.data.convert.features import ArrayStack, Vectors, write_stack
from vidsim.data.pairs import Pairs, write_pairs
from vidsim.data.video.extract import EFFICIENTNET_LITE0, load_extractor
from vidsim.data.video.frames import FrameFolder
from vidsim.data.video.stack import extract_stack

SEED = 2021
FRAME_DIM = 256
LANGUAGES = ("en", "zh")
PARTS = {"train": 0.6, "validation": 0.15, "test": 0.25}
NUM_PAIRS = {"train": 2400, "validation": 600, "test": 1000}
_SHARE_OF_ZEROS = 0.35
_SHARE_OF_SAME_ITEM = 0.02
_SHARE_OF_LANGUAGES = {("en", "en"): 0.4, ("zh", "zh"): 0.4, ("en", "zh"): 0.2}
_GRADE_STEP = 0.05
# An item stands in at most this many pairs, so that no popular one carries a part.
_MAX_PAIRS_OF_ITEM = 24


@dataclass(frozen=True)
class Item:
    """One emoji.

    Attributes:
        id: Its code points in hex.
        raw: Its record in `items.jsonl`.
        keywords: Its keywords in each language of `LANGUAGES`.
    """

    id: str
    raw: Mapping[str, Any]
    keywords: tuple[frozenset[str], ...]


def read_items(path: Path) -> list[Item]:
    """The items, in the order of their ids."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    items = [
        Item(raw["id"], raw, tuple(frozenset(raw[f"tags_{language}"]) for language in LANGUAGES)) for raw in records
    ]
    return sorted(items, key=lambda item: item.id)


def partition(ids: Iterable[str]) -> dict[str, list[str]]:
    """Items into train, validation and test, by a hash of the id: the shares of `PARTS`, at random but for good."""
    ranked = sorted(ids, key=lambda id: hashlib.sha256(f"{SEED} {id}".encode()).digest())
    parts: dict[str, list[str]] = {}
    start = 0
    share = 0.0
    for name, fraction in PARTS.items():
        share += fraction
        end = round(share * len(ranked))
        parts[name] = sorted(ranked[start:end])
        start = end
    return parts


def inverse_frequencies(items: Sequence[Item]) -> tuple[dict[str, float], ...]:
    """For each language, keyword -> ln(items / items with it)."""
    tables = []
    for number in range(len(LANGUAGES)):
        counts = Counter(keyword for item in items for keyword in item.keywords[number])
        tables.append({keyword: math.log(len(items) / count) for keyword, count in counts.items()})
    return tuple(tables)


def grade(first: Item, second: Item, weights: Sequence[Mapping[str, float]]) -> float:
    """Computed grade of two items: 0, 0.05, ... 1.

    0.65 x the square root of the weighted Jaccard index of their CLDR keywords (weight = inverse frequency; mean
    over the languages), + 0.2 for the same CLDR subgroup, + 0.15 for the same group; rounded down to steps of 0.05.
    """
    overlaps = []
    for a, b, weight in zip(first.keywords, second.keywords, weights, strict=True):
        union = sum(weight[keyword] for keyword in sorted(a | b))
        overlaps.append(sum(weight[keyword] for keyword in sorted(a & b)) / union if union else 0.0)
    value = 0.65 * math.sqrt(sum(overlaps) / len(overlaps))
    value += 0.2 * (first.raw["subgroup_en"] == second.raw["subgroup_en"])
    value += 0.15 * (first.raw["group_en"] == second.raw["group_en"])
    # The small number keeps 0.35 from falling to 0.3 by its binary representation.
    return math.floor(value / _GRADE_STEP + 1e-9) / round(1 / _GRADE_STEP)


def sample_pairs(
    items: Sequence[Item], number: int, weights: Sequence[Mapping[str, float]], rng: np.random.Generator
) -> Pairs:
    """Pairs of these items' videos: a fixed share of grade 0, the other grades as evenly as they occur.

    Two items make at most one pair, in one combination of languages; some pairs are an item in both (grade 1).
    """
    levels: dict[float, list[tuple[Item, Item]]] = defaultdict(list)
    for first, second in itertools.combinations(items, 2):
        levels[grade(first, second, weights)].append((first, second))
    for candidates in levels.values():
        rng.shuffle(candidates)
    num_same = round(number * _SHARE_OF_SAME_ITEM)
    num_zero = round(number * _SHARE_OF_ZEROS)
    degree: Counter[str] = Counter()
    rows: list[tuple[str, str, float]] = []
    for item in [items[index] for index in rng.choice(len(items), num_same, replace=False)]:
        rows.append((f"en-{item.id}", f"zh-{item.id}", 1.0))
        degree[item.id] += 1
    chosen = _take(levels.pop(0.0), num_zero, degree, 0.0)
    # Fill the grades in rounds, one pair of each: rare grades run out, the others share the rest.
    queues = {level: iter(levels[level]) for level in sorted(levels)}
    while queues and len(chosen) < number - num_same:
        for level in list(queues):
            taken = _take(queues[level], 1, degree, level)
            chosen += taken
            if not taken:
                del queues[level]
    chosen = chosen[: number - num_same]
    names = list(_SHARE_OF_LANGUAGES)
    languages = rng.choice(len(names), len(chosen), p=list(_SHARE_OF_LANGUAGES.values()))
    swapped = rng.random(len(chosen)) < 0.5
    for (first, second, level), which, swap in zip(chosen, languages, swapped, strict=True):
        left, right = (second, first) if swap else (first, second)
        rows.append((f"{names[which][0]}-{left.id}", f"{names[which][1]}-{right.id}", level))
    rows = [rows[index] for index in rng.permutation(len(rows))]
    scores = np.array([score for _, _, score in rows], dtype=np.float64)
    return Pairs([id1 for id1, _, _ in rows], [id2 for _, id2, _ in rows], scores)


def _take(
    candidates: Iterable[tuple[Item, Item]], number: int, degree: Counter[str], level: float
) -> list[tuple[Item, Item, float]]:
    """The first candidates whose items are not in too many pairs yet."""
    taken: list[tuple[Item, Item, float]] = []
    if not number:
        return taken
    for first, second in candidates:
        if max(degree[first.id], degree[second.id]) < _MAX_PAIRS_OF_ITEM:
            degree.update((first.id, second.id))
            taken.append((first, second, level))
            if len(taken) == number:
                break
    return taken


@dataclass(frozen=True)
class PrincipalAxes:
    """Mean `[D]` and first principal axes `[D, dim]` of some frames, float64, and their share of the variance."""

    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    explained: float

    def project(self, rows: Vectors) -> Vectors:
        """Frames along the axes: float16 `[n, dim]`."""
        return ((rows.astype(np.float64) - self.mean) @ self.axes).astype(np.float16)


def fit_axes(features: ArrayStack, ids: Iterable[str], dim: int) -> PrincipalAxes:
    """Principal component analysis of all frames of some videos."""
    total, count = np.zeros(features.dim), 0
    gram = np.zeros((features.dim, features.dim))
    for id in ids:
        rows = _rows_of(features, id).astype(np.float64)
        gram += rows.T @ rows
        total += rows.sum(axis=0)
        count += len(rows)
    mean = total / count
    values, vectors = np.linalg.eigh(gram / count - np.outer(mean, mean))
    axes = vectors[:, ::-1][:, :dim]
    # An axis has no direction of its own; the largest component decides.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dim)])
    return PrincipalAxes(mean, axes, float(values[::-1][:dim].sum() / values.sum()))


def _rows_of(features: ArrayStack, id: str) -> Vectors:
    rows = features.read(id)
    if rows is None:
        raise UserError("has no features", record=id, fix="extract them again")
    return rows


def write_videos(path: Path, items: Sequence[Item]) -> None:
    """One row for each item and language."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for language, item in itertools.product(LANGUAGES, items):
            row = {
                "id": f"{language}-{item.id}",
                "feature_id": item.id,
                "title": item.raw[f"title_{language}"],
                "asr": item.raw["phrases_en"] if language == "en" else [],
                "tags": item.raw[f"tags_{language}"],
                "category": item.raw["category_id"],
                "group": item.raw[f"group_{language}"],
                "subgroup": item.raw[f"subgroup_{language}"],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def build(source: Path, out: Path, raw_features: Path) -> None:
    """Write the sample into `out`, from the 1280-d features of all frames in `raw_features`."""
    items = read_items(source / "items.jsonl")
    by_id = {item.id: item for item in items}
    parts = partition(by_id)
    write_videos(out / "videos.jsonl", items)
    features = ArrayStack(raw_features, raw_features.with_suffix(".json"), None)
    axes = fit_axes(features, parts["train"], FRAME_DIM)
    label = f"{features.extractor}; first {FRAME_DIM} principal axes of the sample's training frames"
    reduced = ((item.id, axes.project(_rows_of(features, item.id))) for item in items)
    num_frames = write_stack(out / "features.npy", reduced, dim=FRAME_DIM, extractor=label)
    print(f"{len(items):,} items, {num_frames:,} frames; {FRAME_DIM} axes explain {axes.explained:.1%}")
    weights = inverse_frequencies(items)
    rng = np.random.default_rng(SEED)
    for name, ids in parts.items():
        pairs = sample_pairs([by_id[id] for id in ids], NUM_PAIRS[name], weights, rng)
        write_pairs(out / f"pairs_{name}.tsv", pairs)
        counts = Counter(pairs.score.tolist())
        histogram = ", ".join(f"{level:g}: {counts[level]}" for level in sorted(counts))
        print(f"{name}: {len(ids):,} items, {len(pairs):,} pairs ({histogram})")
    held_out = [f"{language}-{id}" for language in LANGUAGES for id in parts["validation"] + parts["test"]]
    with atomic_path(out / "holdout_ids.txt") as temporary:
        temporary.write_text("\n".join(held_out) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="default: this folder")
    parser.add_argument("--raw_features", type=Path, help="1280-d features.npy of all frames (else extracted first)")
    options = parser.parse_args(argv)
    if options.raw_features is not None:
        build(options.source, options.out, options.raw_features)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        raw_features = Path(folder) / "features.npy"
        extract_stack(FrameFolder(options.source / "frames.zip"), load_extractor(EFFICIENTNET_LITE0), raw_features)
        build(options.source, options.out, raw_features)
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
