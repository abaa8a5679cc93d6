"""The whole path on the bundled sample: convert, pretrain, finetune, embed, fuse, submit, check, score.

`python -m vidsim.launch.demo` runs the commands that a user would type, prints each, and ends with a table. Every
command resumes, so a demo that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json
from vidsim.data.arrow import open_videos
from vidsim.data.ids import read_ids
from vidsim.data.pairs import read_pairs
from vidsim.data.sample.prepare import prepare_sample
from vidsim.ensemble import fuse, score, submission

RECIPES = Path(__file__).resolve().parent / "recipes"
DATA = Path("runs/demo/data")
MODELS = {
    "cls": "leading CLS, masked mean",
    "text_cls": "frames before CLS, VTC from the embedding",
    "attention": "attention pooling, 25 % masked",
}
CONDITIONS = ("scratch", "pretrained")


def main(argv: list[str] | None = None) -> int:
    """Run everything."""
    description = (
        "The whole path on the bundled sample: convert, pretrain, finetune, embed, fuse, submit, check, score."
    )
    parser = ArgumentParser(
        prog="vidsim demo",
        description=f"{description} Started again, it goes on where it stopped.",
        epilog="example: vidsim demo --jobs 1",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2 * len(MODELS), os.cpu_count() or 1),
        help="trainings at a time (default here: %(default)s)",
    )
    jobs = parser.parse_args(argv).jobs
    require_at_least({"jobs": jobs}, {"jobs": 1}, prefix="--")
    start = time.monotonic()
    say(start, f"convert the bundled sample to {DATA}")
    prepare_sample(DATA)
    write_id_lists()
    say(start, f"train {len(MODELS)} models with and without pretraining, {jobs} at a time; logs in runs/demo/logs")
    chains = [(name, condition) for condition in reversed(CONDITIONS) for name in MODELS]
    with ThreadPoolExecutor(jobs) as pool:
        list(
            pool.map(
                lambda chain: train_and_embed(*chain, start=start, threads=max(1, (os.cpu_count() or 1) // jobs)),
                chains,
            )
        )
    table = {condition: fuse_and_score(condition, start) for condition in CONDITIONS}
    zip_path = Path("runs/demo/result.zip")
    fused = f"runs/demo/embeddings/{CONDITIONS[-1]}/ensemble"
    ids = str(DATA / "test_ids.txt")
    say(start, f"vidsim submit {fused} --ids {ids} --out {zip_path}")
    submission.main([fused, "--ids", ids, "--out", str(zip_path)])
    say(start, f"vidsim submit --check {zip_path} --ids {ids}")
    submission.main(["--check", str(zip_path), "--ids", ids, "--pairs", str(DATA / "pairs_test.tsv")])
    print_table(table)
    print("\nreports: runs/demo/finetune/*/*/report.html, runs/demo/pretrain/*/*/report.html")
    print(f"submission: {zip_path.resolve()}\n{time.monotonic() - start:.0f} s in all")
    return 0


def say(start: float, text: str) -> None:
    """A line with the time since the start."""
    print(f"[{time.monotonic() - start:5.0f} s] {text}", flush=True)


def write_id_lists() -> None:
    """Ids that the fusion may be fitted on, and ids that are submitted."""
    held_out = set(read_ids(DATA / "holdout_ids.txt"))
    ids = [str(video_id) for video_id in open_videos(DATA / "videos").ids().to_pylist()]
    test = read_pairs(DATA / "pairs_test.tsv")
    lists = {
        "train_ids.txt": [video_id for video_id in ids if video_id not in held_out],
        "test_ids.txt": list(dict.fromkeys([*test.id1, *test.id2])),
    }
    for name, lines in lists.items():
        with atomic_path(DATA / name) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def train_and_embed(name: str, condition: str, *, start: float, threads: int) -> None:
    """One model: pretrain (or only initialise), finetune, embed all videos."""
    folder = f"runs/demo/{{}}/{condition}/{name}"
    recipes = ["--config", str(RECIPES / "pretrain/demo.yaml")]
    if name != "cls":
        recipes += ["--config", str(RECIPES / f"pretrain/demo_{name}.yaml")]
    pretrain = ["pretrain", *recipes, "--output_dir", folder.format("pretrain"), "--resume"]
    if condition == "scratch":
        pretrain += ["--loop.max_steps", "0"]
    finetune = ["finetune", "--config", str(RECIPES / "finetune/demo.yaml"), "--init_from", folder.format("pretrain")]
    finetune += ["--output_dir", folder.format("finetune"), "--resume"]
    embed = ["embed", folder.format("finetune"), str(DATA / "videos"), "--out", embeddings(condition, name)]
    for number, command in enumerate((pretrain, finetune, embed)):
        began = time.monotonic()
        run_command(command, Path(f"runs/demo/logs/{condition}-{name}-{number}-{command[0]}.log"), threads)
        say(start, f"vidsim {command[0]:<8} {condition}/{name}: {time.monotonic() - began:.0f} s")


def embeddings(condition: str, name: str) -> str:
    """Where the embeddings of a model are."""
    return f"runs/demo/embeddings/{condition}/{name}"


def run_command(arguments: Sequence[str], log: Path, threads: int) -> None:
    """Run a vidsim command in a process of its own.

    Raises:
        UserError: It failed; with its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "vidsim.launch.cli", *arguments]
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["no output"]
        raise UserError(f"`vidsim {arguments[0]}` ended with {code}: {lines[-1]}", file=log)


def fuse_and_score(condition: str, start: float) -> list[dict[str, Any]]:
    """Fuse the three models of a condition and score all four on the test pairs."""
    singles = [embeddings(condition, name) for name in MODELS]
    fused = embeddings(condition, "ensemble")
    say(start, f"vidsim ensemble {' '.join(singles)} --out {fused}")
    search = ["--search_weights", str(DATA / "pairs_validation.tsv"), "--fit_ids", str(DATA / "train_ids.txt")]
    fuse.main([*singles, "--out", fused, "--dim", "128", *search, "--overwrite"])
    scores = f"runs/demo/scores_{condition}.json"
    score.main([*singles, fused, str(DATA / "pairs_test.tsv"), "--json", scores])
    rows: list[dict[str, Any]] = read_json(scores)["scores"]
    return rows


def print_table(table: dict[str, list[dict[str, Any]]]) -> None:
    """Spearman on held-out pairs, without and with pretraining."""
    titles = {**MODELS, "ensemble": "weighted concat, SVD 128"}
    print("\nSpearman on held-out pairs of the sample (computed grades, not human judgements), 95 % interval:\n")
    print(f"{'model':<54}{'from scratch':>24}{'pretrained':>24}")
    for index, (name, title) in enumerate(titles.items()):
        cells = [format_score(table[condition][index]) for condition in CONDITIONS]
        print(f"{name + ': ' + title:<54}{cells[0]:>24}{cells[1]:>24}")


def format_score(row: dict[str, Any]) -> str:
    """`.812 [.790, .833]`."""
    low, high = row["interval"]
    return f"{row['spearman']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(run_entry(main))
