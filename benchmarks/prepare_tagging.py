"""Three sets of videos with tags, and features of them that need no encoder of ours.

SRC is one of
- bilibili_hot: videos.jsonl (Chinese; title, desc, tags, danmaku_text, counts),
- movies_mm: movies.jsonl, posters.zip; genres are the tags,
- ted_talks: talk_data_2021.csv (talk_name, talk_desc, tags).

Writes into DIR: videos.jsonl (id, title, asr, tags), data/ (the same as a data set), ids.txt, held_out.txt (videos of
validation and test), and an array [videos, width] for each stream:

- title, comments, text: TF-IDF of what its name says (Chinese: 1 to 3 characters, English: 1 or 2 words), the 256
  directions of a truncated SVD. Words and directions are those of the training videos.
- counts: logarithms of views, likes and the like, and which of them are unknown.
- poster, trailer: EfficientNet-Lite0 features, and seven numbers measured on the trailer.

Tags are never read as text, and hashtags are cut out of descriptions. Titles may still name what is tagged.

Run: python benchmarks/prepare_tagging.py SRC --set bilibili_hot --out DIR    (what is there already is not made again)
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path
from vidsim.data.annotation import split_videos
from vidsim.data.convert import table
from vidsim.data.cowatch_graph import TRAIN
from vidsim.data.video.extract import EFFICIENTNET_LITE0, load_extractor
from vidsim.data.video.frames import FrameFolder
from vidsim.data.video.stack import extract_stack

GIVEN = {
    "bilibili_hot": ("title", "comments", "counts"),
    "movies_mm": ("poster", "trailer"),
    "ted_talks": ("text",),
}
"""What a tagger would have without us."""
TEST_FRACTION, VALIDATION_FRACTION = 0.3, 0.1
_COUNTS = ("view", "danmaku", "like", "coin", "favorite", "share", "reply", "duration")
_CHINESE = {"analyzer": "char_wb", "ngram_range": (1, 3), "min_df": 2}
_ENGLISH = {"stop_words": "english", "ngram_range": (1, 2), "min_df": 2}
_NO_GENRE = ("", "(no genres listed)")
Vectors = npt.NDArray[np.float32]
Row = dict[str, Any]


def read_videos(name: str, source: Path) -> list[Row]:
    """Rows `id`, `title`, `asr`, `tags`, and what else the streams are made of; those without tags are left out."""
    if name == "ted_talks":
        with (source / "talk_data_2021.csv").open(encoding="utf-8", newline="") as file:
            talks = list(csv.DictReader(file))
        rows = [
            {"id": f"ted-{number:04d}", "title": talk["talk_name"], "asr": talk["talk_desc"], "tags": talk["tags"]}
            for number, talk in enumerate(talks)
        ]
        return [row | {"tags": ast.literal_eval(row["tags"])} for row in rows if row["tags"]]
    file_name = {"bilibili_hot": "videos.jsonl", "movies_mm": "movies.jsonl"}[name]
    rows = [json.loads(line) for line in (source / file_name).read_text(encoding="utf-8").splitlines() if line]
    if name == "bilibili_hot":
        for row in rows:
            row["desc"] = re.sub(r"#\S+", " ", row["desc"] or "")
            row["comments"] = " ".join(row["danmaku_text"] or ())
            row["asr"] = f"{row['desc']} {row['comments']}".strip()
    else:
        posters = FrameFolder(source / "posters.zip", is_strip=False)
        rows = [row for row in rows if row["id"] in posters and row["trailer_visual"] is not None]
        for row in rows:
            row["asr"] = " ".join(part for part in (row["plot"], row["overview"]) if part)
            row["tags"] = [genre for genre in row["genres"] if genre not in _NO_GENRE]
    return [row for row in rows if row["tags"] and row["asr"] + row["title"]]


def tfidf(texts: Sequence[str], is_training: npt.NDArray[np.bool_], options: dict[str, Any]) -> Vectors:
    """Directions of what is said, learned from the training videos: float32 [N, 256 at most]."""
    words = TfidfVectorizer(sublinear_tf=True, **options)
    seen = words.fit_transform([texts[row] for row in np.flatnonzero(is_training).tolist()])
    directions = TruncatedSVD(min(256, seen.shape[1] - 1), random_state=0).fit(seen)
    return np.asarray(directions.transform(words.transform(texts)), dtype=np.float32)


def counts(rows: Sequence[Row]) -> Vectors:
    """Float32 [N, 16]: log(1 + count), and 1 where it is unknown."""
    known = [[np.log1p(row[name] or 0) for name in _COUNTS] for row in rows]
    return np.array([values + [row[name] is None for name in _COUNTS] for values, row in zip(known, rows, strict=True)])


def write_streams(name: str, source: Path, out: Path, rows: Sequence[Row], is_training: npt.NDArray[np.bool_]) -> None:
    """Make the arrays that are not there yet."""
    ids = [row["id"] for row in rows]

    def stream(name: str) -> Vectors:
        match name:
            case "title":
                return tfidf([f"{row['title']} {row['desc']}" for row in rows], is_training, _CHINESE)
            case "comments":
                return tfidf([row["comments"] for row in rows], is_training, _CHINESE)
            case "text":
                return tfidf([f"{row['title']} {row['asr']}" for row in rows], is_training, _ENGLISH)
            case "counts":
                return counts(rows)
            case "trailer":
                return np.array([row["trailer_visual"] for row in rows])
            case _:
                if not (out / "poster_stack.json").is_file():
                    posters = FrameFolder(source / "posters.zip", is_strip=False)
                    extract_stack(posters, load_extractor(EFFICIENTNET_LITE0), out / "poster_stack.npy", ids)
                return np.load(out / "poster_stack.npy")

    for needed in {*GIVEN[name], *(() if name == "bilibili_hot" else ("text",))}:
        path = out / f"{needed}.npy"
        if not path.is_file():
            array = stream(needed)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, array.astype(np.float32))


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def prepare(name: str, source: Path, out: Path) -> None:
    """Make whatever is not there yet.

    Raises:
        UserError: A file of the set is missing.
    """
    try:
        rows = read_videos(name, source)
    except FileNotFoundError as error:
        raise UserError("is missing", file=error.filename, fix=f"name the folder of {name}") from None
    ids = [row["id"] for row in rows]
    is_training = split_videos(ids, TEST_FRACTION, VALIDATION_FRACTION, 0, None) == TRAIN
    out.mkdir(parents=True, exist_ok=True)
    fields = ("id", "title", "asr", "tags")
    videos = [json.dumps({field: row[field] for field in fields}, ensure_ascii=False) for row in rows]
    write_lines(out / "videos.jsonl", videos)
    write_lines(out / "ids.txt", ids)
    write_lines(out / "held_out.txt", [ids[row] for row in np.flatnonzero(~is_training).tolist()])
    if not (out / "data" / "manifest.json").is_file():
        table.main([str(out / "videos.jsonl"), "--out", str(out / "data")])
    write_streams(name, source, out, rows, is_training)
    print(f"{name}: {len(rows):,} videos with tags, {int(is_training.sum()):,} of them to train on")


def main(argv: list[str] | None = None) -> int:
    """Prepare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--set", choices=list(GIVEN), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(argv)
    prepare(options.set, options.source, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
