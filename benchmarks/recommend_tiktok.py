"""Recommendation on TikTok micro-videos: what a user watched later, among all videos or among new ones.

SRC holds trnMat.npz and valMat.npz (users x videos, 0 or 1) and image_feat.npy, audio_feat.npy (videos x 128).

Warm: everything is made from trnMat; the truth is valMat. Every video the user has no interaction with in trnMat is
ranked; Recall@20 = found / there to find, NDCG@20 of relevance 0 or 1 with the ideal of min(20, there to find), means
over the users that have an interaction in valMat (the protocol of the graph recommenders on this set). A user without a
history counts as 0.
Cold: a fifth of the videos (by a hash of id and seed) is taken out of all training; the truth are the interactions of
trnMat and valMat with them, of users who have watched others. Ranked are the cold videos alone, or all.

Settings were chosen by the users of one half of valMat (crc32 of the number even): the column "others" is the rest.
Those of the towers were chosen by the cold videos of seed 0.

Run: python benchmarks/recommend_tiktok.py SRC --out DIR        (a run that was cut off goes on at the next ranking)
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from recommend_towers import require_same_settings, train_towers
from sources import require_files

from vidsim.common.entry import run_entry
from vidsim.common.files import atomic_path, write_json
from vidsim.data.cowatch_graph import EVAL, parts_of
from vidsim.launch.ablation_table import Row, dot_plot
from vidsim.modeling.ranking_metrics import mean_interval
from vidsim.retrieval.recommend import Catalogue, ranked_blocks, with_taste
from vidsim.retrieval.recommend_evaluation import UserMetrics, user_metrics
from vidsim.retrieval.recommend_factors import FactorsConfig, factors, with_content
from vidsim.retrieval.recommend_histories import Histories
from vidsim.retrieval.recommend_scoring import exact_scorer
from vidsim.retrieval.vectors import unit_vectors

K = 20
COLD_FRACTION, VALIDATION_FRACTION = 0.2, 0.05
SESSIONS = ["--unordered", "--weighting", "session", "--min_weight", "0.2"]
TRAINING = ["--num_epochs", "20", "--loop.micro_batch_size", "4096", "--loop.eval_every_steps", "10"]
TRAINING += ["--task.hidden", "[1000]", "--task.fusion", "early", "--task.margin", "0.3"]
SHRINKAGE, EASE_RIDGE, SVD_DIM = 100.0, 50.0, 64
OURS = FactorsConfig(dim=256, user_power=0.5, content_weight=3.0)
OF_UNTRAINED = FactorsConfig(dim=256, user_power=0.5, content_weight=0.1)
_BLOCK = 1024
Matrix = sp.csr_array
Rows = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Table = dict[str, list[UserMetrics]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked.

    Attributes:
        name: warm, or cold with its candidates.
        train: Users x videos: the histories.
        truth: Users x videos: what is looked for.
        allowed: bool, videos that are ranked.
    """

    name: str
    train: Matrix
    truth: Matrix
    allowed: npt.NDArray[np.bool_]

    @property
    def users(self) -> Rows:
        """Who is judged."""
        return np.flatnonzero(np.diff(self.truth.indptr))


@dataclass(frozen=True, eq=False)
class Source:
    """The data set."""

    folder: Path
    train: Matrix
    later: Matrix
    content: Float32

    @property
    def ids(self) -> list[str]:
        """Ids of the videos."""
        return [str(number) for number in range(self.train.shape[1])]


def read_source(folder: Path) -> Source:
    """Matrices of 0 and 1, and the scaled features beside each other."""
    require_files(folder, "trnMat.npz", "valMat.npz", "image_feat.npy", "audio_feat.npy")
    matrices = []
    for name in ("trnMat", "valMat"):
        matrix = sp.csr_array(sp.load_npz(folder / f"{name}.npz")).astype(np.float64)
        matrix.data[:] = 1
        matrices.append(matrix)
    parts = [np.load(folder / f"{name}_feat.npy").astype(np.float32) for name in ("image", "audio")]
    content = np.concatenate([(part - part.mean(axis=0)) / part.std(axis=0) for part in parts], axis=1)
    return Source(folder, matrices[0], matrices[1], content)


def only(matrix: Matrix, videos: npt.NDArray[np.bool_]) -> Matrix:
    """The interactions with some videos."""
    kept = sp.csr_array(matrix.multiply(videos.astype(np.float64)[None]))
    kept.eliminate_zeros()
    return kept


def warm_task(source: Source) -> Task:
    """ValMat after trnMat."""
    return Task(name="warm", train=source.train, truth=source.later, allowed=np.ones(source.train.shape[1], bool))


def cold_tasks(source: Source, seed: int) -> list[Task]:
    """Interactions with videos that no training has seen."""
    is_cold = parts_of(source.ids, COLD_FRACTION, VALIDATION_FRACTION, seed) == EVAL
    train, truth = only(source.train, ~is_cold), only(source.train + source.later, is_cold)
    has_history = (np.diff(train.indptr) > 0).astype(np.float64)
    truth = sp.csr_array(truth.multiply(has_history[:, None]))
    truth.eliminate_zeros()
    everything = np.ones(len(is_cold), bool)
    return [
        Task(name="cold, among cold", train=train, truth=truth, allowed=is_cold),
        Task(name="cold, among all", train=train, truth=truth, allowed=everything),
    ]


def histories_of(matrix: Matrix) -> Histories:
    """All users' histories."""
    user, video = matrix.nonzero()
    return Histories.of(
        [str(number) for number in range(matrix.shape[0])], user.astype(np.int64), video.astype(np.int64)
    )


def by_scores(task: Task, score: Callable[[Rows], npt.NDArray[Any]]) -> Rows:
    """The best videos of each judged user, from scores [users, videos]; equal ones by their number."""
    found = []
    for start in range(0, len(task.users), _BLOCK):
        users = task.users[start : start + _BLOCK]
        scores = np.array(score(users), dtype=np.float64)
        scores[:, ~task.allowed] = -np.inf
        scores[task.train[users].toarray() > 0] = -np.inf
        found.append(np.argsort(-scores, axis=1, kind="stable")[:, :K])
    return np.concatenate(found)


def by_random(task: Task, seed: int) -> Rows:
    """A random order for each user."""
    num_videos = task.train.shape[1]
    return by_scores(task, lambda users: np.random.default_rng([seed, users[0]]).random((len(users), num_videos)))


def by_items(task: Task, weights: npt.NDArray[Any]) -> Rows:
    """The mean over the history of what each video says of each, weights [videos, videos]."""
    mean = sp.csr_array(task.train / np.maximum(task.train.sum(axis=1), 1)[:, None])
    return by_scores(task, lambda users: mean[users] @ weights)


def by_vectors(task: Task, vectors: Float32, *, similarity: str = "cosine", aggregate: Any = "average") -> Rows:
    """The same as `vidsim recommend` gives; -1 for users without a history."""
    ids = [str(number) for number in range(len(vectors))]
    among = [ids[number] for number in np.flatnonzero(task.allowed).tolist()]
    scorer = exact_scorer(ids, vectors, among=among, similarity=similarity)
    catalogue = Catalogue(scorer, ids, lambda rows: scorer.vectors[rows], np.arange(len(ids)), len(among))
    histories, _ = with_taste(histories_of(task.train).take(task.users))
    place = {str(user): number for number, user in enumerate(task.users.tolist())}
    rows = np.full((len(task.users), K), -1)
    for part, found, _ in ranked_blocks(catalogue, histories, K, aggregate):
        rows[[place[user] for user in part.users]] = found
    return rows


def collaborative(task: Task, config: FactorsConfig, content: Float32 | None = None) -> Float32:
    """What `vidsim factors` writes."""
    histories, _ = with_taste(histories_of(task.train))
    vectors = factors(histories, task.train.shape[1], config)
    if content is None:
        return vectors
    return with_content(vectors, unit_vectors(content, [""] * len(content)), config.content_weight)


def item_knn(task: Task) -> npt.NDArray[Any]:
    """Cosines of co-occurrence, shrunk, of each video with each."""
    together = (task.train.T @ task.train).toarray()
    watched = together.diagonal().copy()
    np.fill_diagonal(together, 0)
    return together / (np.sqrt(np.outer(watched, watched)) + SHRINKAGE)


def ease(task: Task) -> npt.NDArray[Any]:
    """Weights of the linear auto-encoder EASE (Steck 2019)."""
    gram = (task.train.T @ task.train).toarray().astype(np.float32)
    gram[np.diag_indices(len(gram))] += EASE_RIDGE
    inverse = np.linalg.inv(gram)
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return weights


def implicit_rows(task: Task, name: str, seed: int) -> Rows:
    """Peers of the package implicit: ALS and BPR of 64 factors."""
    from implicit.als import AlternatingLeastSquares  # type: ignore[import-not-found]
    from implicit.bpr import BayesianPersonalizedRanking  # type: ignore[import-not-found]

    made: dict[str, Any] = {"ALS": AlternatingLeastSquares, "BPR": BayesianPersonalizedRanking}
    model = made[name](factors=SVD_DIM, random_state=seed, num_threads=1)
    model.fit(sp.csr_matrix(task.train).astype(np.float32), show_progress=False)
    return by_scores(task, lambda users: model.user_factors[users] @ model.item_factors.T)


def tower_vectors(source: Source, out: Path, seed: int, cold_fraction: float) -> Float32:
    """Content-only co-watch learning; vectors of all videos."""
    split = ["--eval_fraction", str(cold_fraction), "--validation_fraction", str(VALIDATION_FRACTION)]
    features = {"visual": source.folder / "image_feat.npy", "audio": source.folder / "audio_feat.npy"}
    watches = [str(source.folder / "trnMat.npz"), *SESSIONS, *split]
    return train_towers(out / f"towers-{cold_fraction:g}-{seed}", watches, features, TRAINING, seed)


class Rankings:
    """Computes rankings once, and keeps them in files."""

    def __init__(self, folder: Path) -> None:
        """Remember where, and when it began."""
        self.folder = folder
        self.start = time.monotonic()

    def get(self, task: Task, name: str, seed: int, make: Callable[[], Rows]) -> UserMetrics:
        """Metrics of each judged user."""
        path = self.folder / f"{task.name} {name} {seed}.npy".replace(" ", "_").replace(",", "")
        if not path.is_file():
            rows = make()
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, rows)
        rows = np.load(path)
        truth = [dict.fromkeys(task.truth[[user]].indices.tolist(), 1.0) for user in task.users.tolist()]
        metrics = user_metrics(rows, truth, K)
        spent = time.monotonic() - self.start
        shown = f"recall {metrics.recall.mean():.4f}, NDCG {metrics.ndcg.mean():.4f}"
        print(f"[{spent:5.0f} s] {task.name}, {name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
        return metrics


def warm_rows(source: Source, rankings: Rankings, out: Path, seeds: Sequence[int]) -> Table:
    """All lines of the warm table."""
    task = warm_task(source)
    towers = [tower_vectors(source, out, seed, 0.0) for seed in seeds]
    plain = FactorsConfig(dim=SVD_DIM, user_power=0)
    popularity = task.train.sum(axis=0)

    def history(content: Float32 | None = None, of: FactorsConfig = OURS) -> Rows:
        return by_vectors(task, collaborative(task, of, content), similarity="dot")

    once: dict[str, Callable[[], Rows]] = {
        "popularity": lambda: by_scores(task, lambda users: np.tile(popularity, (len(users), 1))),
        "item-kNN": lambda: by_items(task, item_knn(task)),
        f"SVD, {SVD_DIM}": lambda: history(of=plain),
        "EASE": lambda: by_items(task, ease(task)),
        "content, untrained": lambda: by_vectors(task, source.content),
        "content, untrained, max": lambda: by_vectors(task, source.content, aggregate="max"),
        "history (vidsim factors)": history,
        "history + untrained content": lambda: history(source.content, OF_UNTRAINED),
    }
    every_seed: dict[str, Callable[[int], Rows]] = {
        "random": lambda seed: by_random(task, seed),
        "content, co-watch learning": lambda seed: by_vectors(task, towers[seed]),
        "content, co-watch learning, max": lambda seed: by_vectors(task, towers[seed], aggregate="max"),
        "history + co-watch content": lambda seed: history(towers[seed]),
    }
    if importlib.util.find_spec("implicit") is not None:
        for name in ("ALS", "BPR"):
            every_seed[f"{name}, {SVD_DIM} (implicit)"] = partial(implicit_rows, task, name)
    table = {name: [rankings.get(task, name, 0, make)] for name, make in once.items()}
    for name, make_seed in every_seed.items():
        table[name] = [rankings.get(task, name, seed, partial(make_seed, seed)) for seed in seeds]
    return dict(sorted(table.items(), key=lambda entry: float(np.mean([one.recall.mean() for one in entry[1]]))))


def cold_rows(source: Source, rankings: Rankings, out: Path, seeds: Sequence[int]) -> dict[str, Table]:
    """All lines of the cold tables; other videos are cold with each seed."""
    tables: dict[str, Table] = {}
    for seed in seeds:
        towers = tower_vectors(source, out, seed, COLD_FRACTION)
        for task in cold_tasks(source, seed):
            made: dict[str, Callable[[], Rows]] = {
                "random": partial(by_random, task, seed),
                "content, untrained": partial(by_vectors, task, source.content),
                "content, co-watch learning": partial(by_vectors, task, towers),
                "history + co-watch content": partial(history_and_content, task, towers),
            }
            for name, make in made.items():
                found = rankings.get(task, name, seed, make)
                tables.setdefault(task.name, {}).setdefault(name, []).append(found)
    return tables


def history_and_content(task: Task, content: Float32) -> Rows:
    """As `vidsim factors --content` and `vidsim recommend --similarity dot`."""
    return by_vectors(task, collaborative(task, OURS, content), similarity="dot")


def line(name: str, found: Sequence[UserMetrics], chosen: npt.NDArray[np.bool_] | None) -> str:
    """Means over users and seeds, interval over users (all seeds' users together where they differ), sd over seeds."""
    cells = []
    for metric in ("recall", "ndcg"):
        of_seeds = [getattr(one, metric) for one in found]
        values = np.concatenate(of_seeds) if chosen is None else np.mean(of_seeds, axis=0)
        low, high = mean_interval(values)
        cells.append(f"{values.mean():.4f} [{low:.4f}, {high:.4f}]")
        if chosen is not None:
            cells.append(f"{values[~chosen].mean():.4f}")
    deviation = f"{np.std([one.recall.mean() for one in found], ddof=1):.4f}" if len(found) > 1 else ""
    return f"| {name} | " + " | ".join([*cells, deviation]) + " |"


def write_tables(
    out: Path,
    warm: Table,
    cold: dict[str, Table],
    chosen: npt.NDArray[np.bool_],
) -> None:
    """Markdown, JSON and a picture."""
    lines = [
        f"Warm: {len(chosen):,} users; settings chosen by {int(chosen.sum()):,} of them, `others` are the rest.",
        "",
        f"| | Recall@{K} | others | NDCG@{K} | others | sd of recall over seeds |",
        "| --- |" + " ---: |" * 5,
        *(line(name, found, chosen) for name, found in warm.items()),
    ]
    for name, table in cold.items():
        number = round(np.mean([len(one.recall) for one in next(iter(table.values()))]))
        lines += [
            "",
            f"{name.capitalize()}: {number:,} users a seed.",
            "",
            f"| | Recall@{K} | NDCG@{K} | sd of recall over seeds |",
        ]
        lines += ["| --- |" + " ---: |" * 3, *(line(row, found, None) for row, found in table.items())]
    with atomic_path(out / "results.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    figures = {
        task: {
            name: [
                {
                    "recall": float(one.recall.mean()),
                    "ndcg": float(one.ndcg.mean()),
                    "map": float(one.average_precision.mean()),
                }
                for one in found
            ]
            for name, found in table.items()
        }
        for task, table in {"warm": warm, **cold}.items()
    }
    write_json(out / "results.json", figures)
    by_recall = sorted(warm, key=lambda name: figures["warm"][name][0]["recall"])
    rows = [_row(name, figures["warm"][name]) for name in by_recall]
    with atomic_path(out / "recall.svg") as temporary:
        title, label = f"TikTok: what {len(chosen):,} users watched next", f"Recall@{K}, a dot a seed"
        temporary.write_text(dot_plot(title, rows, "popularity", x_label=label), encoding="utf-8")


def _row(name: str, of_seeds: Sequence[dict[str, float]]) -> Row:
    return Row(name=name, scores={seed: one["recall"] for seed, one in enumerate(of_seeds)}, differences={})


def main(argv: list[str] | None = None) -> int:
    """Compute what is not there yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, help="of training, and of what is cold (%(default)s)")
    args = parser.parse_args(argv)
    source, out, seeds = read_source(args.source.resolve()), args.out.resolve(), range(args.seeds)
    settings = {
        "sessions": SESSIONS,
        "training": TRAINING,
        "ours": [vars(OURS), vars(OF_UNTRAINED)],
        "cold": COLD_FRACTION,
    }
    require_same_settings(out, settings | {"validation": VALIDATION_FRACTION, "k": K})
    rankings = Rankings(out / "rankings")
    warm = warm_rows(source, rankings, out, seeds)
    cold = cold_rows(source, rankings, out, seeds)
    chosen = np.array([zlib.crc32(str(user).encode()) % 2 == 0 for user in warm_task(source).users.tolist()])
    write_tables(out, warm, cold, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
