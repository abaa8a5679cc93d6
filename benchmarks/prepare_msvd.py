"""Data sets of MSVD clips, English and Chinese, with the human-scored pairs of MSRvid (STS-B).

SRC holds videos.jsonl (id, captions_en, captions_zh), frames.zip (ID/00.webp ... of some clips) and
pairs_msrvid.jsonl (score of 0 to 5, the rated sentences in both languages, the clips they describe).
Writes into DIR:

- en/, zh/: data set folders: title = one caption, asr = others, tags = words that several captions share;
  1280-d EfficientNet-Lite0 features of the clips that have frames, zero frames for the others,
- pairs.tsv: pairs of two different clips, scores scaled to 0..1, their mean where a pair was rated twice;
  pairs_unambiguous.tsv: those whose sentences fit no other clip; pair_ids.txt: the clips in them,
- features.npy and features.json: the features.

A rated sentence is never text of a clip: a caption that equals one, but for case and punctuation, is dropped.

Run: python benchmarks/prepare_msvd.py SRC --out DIR
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidsim.common.entry import run_entry
from vidsim.common.files import atomic_path
from vidsim.data.convert import table
from vidsim.data.pairs import Pairs, write_pairs
from vidsim.data.video.extract import EFFICIENTNET_LITE0, load_extractor
from vidsim.data.video.frames import FrameFolder
from vidsim.data.video.stack import extract_stack

_MAX_SCORE = 5.0
_NUM_ASR_CAPTIONS = 4
_MAX_TAGS = 8
_MIN_CLIPS_OF_TAG = 5
_MAX_SHARE_OF_CLIPS = 0.2
_STOP_TEXT = """
    a an the is are was were be been being am do does did has have had of in on at to from with into onto up
    down out over off by for and or as it its his her their he she they them him this that these those there
    some one two three someone somebody something very then while who which what s t another other
"""
_STOP_WORDS = frozenset(_STOP_TEXT.split())
_STOP_CHARACTERS = frozenset("一个在的了着和上里把是有正这那她它们被给从向用与下中对出来去到名位只条")


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single blanks; no blanks at all beside Chinese characters."""
    kept = "".join(character if unicodedata.category(character)[0] in "LN" else " " for character in text.lower())
    words = kept.split()
    return ("" if any("\u4e00" <= character <= "\u9fff" for character in kept) else " ").join(words)


def rated_sentences(pairs: Iterable[dict[str, Any]]) -> set[str]:
    """Every sentence that people rated, normalised, in both languages."""
    keys = ("sent1", "sent2", "sent1_zh", "sent2_zh")
    return {normalise(pair[key]) for pair in pairs for key in keys if pair.get(key)}


def usable_captions(captions: Iterable[str], rated: set[str]) -> list[str]:
    """Captions that are not rated sentences, each once, in order."""
    first: dict[str, str] = {}
    for caption in captions:
        key = normalise(caption)
        if key and key not in rated:
            first.setdefault(key, caption.strip())
    return list(first.values())


def terms(caption: str, language: str) -> set[str]:
    """What may become a tag: English content words, Chinese pairs of characters that carry content."""
    text = normalise(caption)
    if language == "en":
        return {word for word in text.split() if len(word) > 2 and word not in _STOP_WORDS}
    runs = "".join(" " if character in _STOP_CHARACTERS else character for character in text).split()
    return {run[start : start + 2] for run in runs for start in range(len(run) - 1)}


def choose_tags(captions: Sequence[Sequence[str]], language: str) -> list[list[str]]:
    """For each clip, terms of two (and a tenth) of its captions, neither rare nor everywhere; best first."""
    counts = [Counter(term for caption in clip for term in sorted(terms(caption, language))) for clip in captions]
    shared = [
        {term: count for term, count in clip.items() if count >= max(2, 0.1 * len(texts))}
        for clip, texts in zip(counts, captions, strict=True)
    ]
    num_clips = Counter(term for clip in shared for term in clip)
    limit = _MAX_SHARE_OF_CLIPS * len(captions)
    tags = []
    for clip in shared:
        common = [term for term in clip if _MIN_CLIPS_OF_TAG <= num_clips[term] <= limit]
        tags.append(sorted(common, key=lambda term: (-clip[term], term))[:_MAX_TAGS])
    return tags


def clip_pairs(rows: Iterable[dict[str, Any]]) -> Pairs:
    """Pairs of two different clips that are known; several ratings of one pair are averaged."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        first, second = row["vid1"], row["vid2"]
        if first and second and first != second:
            scores[min(first, second), max(first, second)].append(row["score"] / _MAX_SCORE)
    means = np.array([np.mean(values) for values in scores.values()], dtype=np.float64)
    return Pairs([first for first, _ in scores], [second for _, second in scores], means)


def write_rows(path: Path, videos: Sequence[dict[str, Any]], rated: set[str], language: str) -> None:
    """Write the table that the converter reads, and print what was dropped."""
    captions = [usable_captions(video[f"captions_{language}"], rated) for video in videos]
    dropped = sum(normalise(caption) in rated for video in videos for caption in video[f"captions_{language}"])
    end = ". " if language == "en" else "。"
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for video, texts, tags in zip(videos, captions, choose_tags(captions, language), strict=True):
            asr = end.join(text.rstrip(".。 ") for text in texts[1 : 1 + _NUM_ASR_CAPTIONS])
            row = {"id": video["id"], "title": texts[0] if texts else "", "asr": asr, "tags": tags}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    empty = sum(not texts for texts in captions)
    print(f"{language}: {dropped:,} captions are rated sentences and dropped, {empty:,} clips have no text left")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def main(argv: list[str] | None = None) -> int:
    """Prepare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--features", type=Path, help="features.npy of an earlier run, instead of extracting again")
    parser.add_argument("--extractor", default=EFFICIENTNET_LITE0)
    options = parser.parse_args(argv)
    videos = _read(options.source / "videos.jsonl")
    rated_rows = _read(options.source / "pairs_msrvid.jsonl")
    features = options.features
    if features is None:
        features = options.out / "features.npy"
        frames = FrameFolder(options.source / "frames.zip")
        num_frames = extract_stack(frames, load_extractor(options.extractor), features)
        print(f"{num_frames:,} frames of {len(frames)} clips -> {features}")
    rated = rated_sentences(rated_rows)
    for language in ("en", "zh"):
        rows = options.out / f"{language}.jsonl"
        write_rows(rows, videos, rated, language)
        out = str(options.out / language)
        table.main([str(rows), "--out", out, "--features", str(features), "--allow_missing_features"])
    unambiguous = [row for row in rated_rows if len(row["cand1"]) == len(row["cand2"]) == 1]
    pairs = clip_pairs(rated_rows)
    write_pairs(options.out / "pairs.tsv", pairs)
    write_pairs(options.out / "pairs_unambiguous.tsv", clip_pairs(unambiguous))
    with atomic_path(options.out / "pair_ids.txt") as temporary:
        temporary.write_text("\n".join(sorted(pairs.unique_ids())) + "\n", encoding="utf-8")
    print(f"{len(pairs):,} pairs of {len(pairs.unique_ids()):,} clips -> {options.out / 'pairs.tsv'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
