"""The whole competition in its own layout: from TFRecords to a scored submission, through the command line.

The quick size takes two of the six published jobs for a few steps; the slow one takes all six, on features of the
published width.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.data.arrow import open_videos
from vidsim.data.embeddings import read_embeddings
from vidsim.data.pairs import read_pairs
from vidsim.data.tf_example import parse_example
from vidsim.data.tfrecord import read_records
from vidsim.launch.cli import main

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"
NUM_VIDEOS, NUM_FILES, NUM_PAIRS, NUM_TEST_PAIRS = 600, 20, 250, 60
PARTS = ("pointwise", "pairwise", "test_a", "test_b")


@dataclass(frozen=True)
class Size:
    """How much of it is done."""

    frame_dim: int
    jobs: tuple[int, ...]
    pretrain: tuple[str, ...]
    finetune: tuple[str, ...]
    least_spearman: float


SMALL = ("--model.hidden_size", "32", "--model.num_heads", "2", "--loop.micro_batch_size", "16")
QUICK = Size(64, (1, 5), (*SMALL, "--loop.max_steps", "4"), ("--num_epochs", "1"), 0.1)
FULL = Size(1536, (1, 2, 3, 4, 5, 6), ("--data.epoch_scale", "0.05"), (), 0.3)


@dataclass(frozen=True)
class Competition:
    """A working folder with `corpora/aiac`, `runs`, `emb`, and `src`, the files of the organisers."""

    folder: Path
    size: Size

    def run(self, *words: str) -> str:
        """Run a command there; what it prints."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words))
        assert code == 0, err.getvalue()
        return out.getvalue()

    def train(self, room: str, recipe: str, *options: str) -> str:
        """Run a shipped recipe, scaled down."""
        paths = [str(RECIPES / room / f"{name}.yaml") for name in (recipe, "scaled_down")]
        return self.run(room, "--config", paths[0], "--config", paths[1], *options)


@pytest.fixture(scope="module", params=[QUICK, pytest.param(FULL, marks=pytest.mark.slow)], ids=["quick", "full"])
def competition(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Competition:
    return Competition(tmp_path_factory.mktemp("competition"), request.param)


@pytest.fixture(scope="module")
def converted(competition: Competition) -> Competition:
    size = competition.size
    competition.run(
        *("generate", "--out", "src", "--num_videos", str(NUM_VIDEOS), "--num_files", str(NUM_FILES)),
        *("--num_pairs", str(NUM_PAIRS), "--num_test_pairs", str(NUM_TEST_PAIRS), "--frame_dim", str(size.frame_dim)),
    )
    options = () if size.frame_dim == 1536 else ("--frame_dim", str(size.frame_dim))
    said = competition.run("convert", "aiac", "src", "--out", "corpora/aiac", "--num_processes", "1", *options)
    assert "left out" not in said
    competition.run("split", "corpora/aiac/pairs.tsv", "--out", "corpora/aiac/split")
    return competition


@pytest.fixture(scope="module")
def pretrained(converted: Competition) -> Competition:
    for job in converted.size.jobs:
        converted.train("pretrain", f"job{job}", *converted.size.pretrain)
    converted.train("pretrain", "base", *converted.size.pretrain)
    return converted


@pytest.fixture(scope="module")
def finetuned(pretrained: Competition) -> Competition:
    for job in pretrained.size.jobs:
        runs = ("--init_from", f"runs/pretrain/job{job}", "--output_dir", f"runs/finetune/job{job}")
        kept = ("--projection", "keep") if job in (2, 3) else ()
        pretrained.train("finetune", "published", *runs, *kept, *pretrained.size.finetune)
    pretrained.train("finetune", "similarity", *pretrained.size.finetune)
    return pretrained


@pytest.fixture(scope="module")
def submitted(finetuned: Competition) -> Competition:
    members = [*(f"job{job}" for job in finetuned.size.jobs), "similarity"]
    for name in members:
        finetuned.run("embed", f"runs/finetune/{name}", "corpora/aiac/test_b", "--out", f"emb/{name}")
    finetuned.run("ensemble", *(f"emb/{name}" for name in members), "--out", "emb/fused")
    finetuned.run("submit", "emb/fused", "--ids", "corpora/aiac/test_b", "--out", "result.zip")
    return finetuned


def source_rows(competition: Competition, part: str) -> list[dict[str, Any]]:
    """The records of a part, in the order of the files' numbers, read without the converter."""
    files = sorted((competition.folder / "src" / part).glob("*.tfrecords"), key=lambda path: (len(path.name), path))
    return [
        dict(parse_example(record.data, file=path, record=record.index, offset=record.data_offset))
        for path in files
        for record in read_records(path)
    ]


@pytest.mark.parametrize("part", PARTS)
def test_conversion_keeps_every_video(converted: Competition, part: str) -> None:
    videos = open_videos(converted.folder / "corpora" / "aiac" / part)
    rows = source_rows(converted, part)
    assert len(videos) == len(rows)
    assert videos.streams == {"frames": converted.size.frame_dim}
    for video, row in zip(videos, rows, strict=True):
        assert video["id"].encode() == row["id"][0]
        assert [video[name].encode() for name in ("title", "asr")] == [row["title"][0], row["asr_text"][0]]
        assert video["frames"].tobytes() == b"".join(row["frame_feature"])
        assert video["tags"] == [str(tag) for tag in row.get("tag_id", [])]
        assert video["category"] == next(iter(row.get("category_id", [])), None)
    assert videos.manifest.has_tags == (part in ("pointwise", "pairwise"))
    assert len(videos.manifest.shards) == (NUM_FILES if part == "pointwise" else 1)
    if part == "pointwise":
        assert len(videos) == NUM_VIDEOS


def test_conversion_keeps_labels_and_tags(converted: Competition) -> None:
    source, corpus = converted.folder / "src", converted.folder / "corpora" / "aiac"
    pairs, labels = read_pairs(corpus / "pairs.tsv"), read_pairs(source / "pairwise" / "label.tsv")
    assert len(pairs) == NUM_PAIRS
    assert (pairs.id1, pairs.id2, pairs.score.tolist()) == (labels.id1, labels.id2, labels.score.tolist())
    assert (corpus / "tags.txt").read_text().split() == (source / "tag_list.txt").read_text().split()


def test_verification_and_inspection(converted: Competition) -> None:
    said = converted.run("verify", "corpora/aiac")
    assert f"pairs.tsv: {NUM_PAIRS} pairs, all " in said
    assert all(line.startswith("OK ") for line in said.splitlines())
    report = json.loads(converted.run("inspect", "corpora/aiac", "--json"))
    found = {data_set["name"]: data_set for data_set in report["data_sets"]}
    assert set(found) == set(PARTS)
    assert found["pointwise"]["num_videos"] == NUM_VIDEOS
    # The published statistics: 18.7 characters, 4.76 tags, about 17 frames.
    for name, expected in (("title", 18.7), ("tags", 4.76), ("frames", 17.0)):
        assert found["pointwise"]["lengths"][name]["mean"] == pytest.approx(expected, rel=0.15)
    assert report["pairs"]["corpora/aiac/pairs.tsv"]["num_levels"] <= 21


def test_the_split_shares_no_video(converted: Competition) -> None:
    folder = converted.folder / "corpora" / "aiac" / "split"
    parts = {name: read_pairs(folder / f"{name}.tsv") for name in ("train", "validation", "test", "dropped")}
    assert sum(map(len, parts.values())) == NUM_PAIRS
    videos = {name: set(pairs.unique_ids()) for name, pairs in parts.items()}
    assert not videos["train"] & (videos["validation"] | videos["test"])
    assert not videos["validation"] & videos["test"]
    assert set((folder / "holdout_ids.txt").read_text().split()) == videos["validation"] | videos["test"]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_run(run: Path) -> dict[str, Any]:
    """Every file of a run folder is there and every figure is a number; the last evaluation."""
    for name in ("config.yaml", "env.json", "report.html", "checkpoints/best/model.safetensors"):
        assert (run / name).is_file(), name
    assert (run / "checkpoints" / "last" / "COMPLETE").is_file()
    lines = metrics_of(run)
    assert all(value is not None and math.isfinite(value) for line in lines for value in line.values())
    return lines[-1]


def test_pretraining_jobs(pretrained: Competition) -> None:
    for job in pretrained.size.jobs:
        last = check_run(pretrained.folder / "runs" / "pretrain" / f"job{job}")
        names = {name.removeprefix("held_out/") for name in last if name.startswith("held_out/")}
        assert names == {"vtc", "mlm", "loss"} | (set() if job == 3 else {"mfm"})


def test_pretraining_of_our_own_keeps_held_out_videos_away(pretrained: Competition) -> None:
    run = pretrained.folder / "runs" / "pretrain" / "base"
    last = check_run(run)
    assert -1 <= last["probe/spearman"] <= 1
    holdout = (pretrained.folder / "corpora/aiac/split/holdout_ids.txt").read_text().split()
    recipe = [str(RECIPES / "pretrain" / f"{name}.yaml") for name in ("base", "scaled_down")]
    said = pretrained.run("pretrain", "--config", recipe[0], "--config", recipe[1], "--dry_run")
    assert f"{len(holdout)} excluded" in said


def test_finetuning(finetuned: Competition) -> None:
    for name in (*(f"job{job}" for job in finetuned.size.jobs), "similarity"):
        last = check_run(finetuned.folder / "runs" / "finetune" / name)
        assert -1 <= last["validation/spearman"] <= 1


def test_the_submission_is_what_the_organisers_ask_for(submitted: Competition) -> None:
    ids = open_videos(submitted.folder / "corpora/aiac/test_b").ids().to_pylist()
    with zipfile.ZipFile(submitted.folder / "result.zip") as archive:
        assert archive.namelist() == ["result.json"]
        content = json.loads(archive.read("result.json"))
    assert list(content) == ids
    fused = read_embeddings(submitted.folder / "emb/fused")
    assert fused.ids == ids
    written = np.array(list(content.values()))
    assert written.shape == (len(ids), min(256, 256 * (len(submitted.size.jobs) + 1)))
    assert np.abs(written - fused.vectors).max() < 1e-6
    assert np.linalg.norm(fused.vectors, axis=1) == pytest.approx(np.ones(len(ids)), abs=1e-5)


def test_the_check_runs_in_a_process_of_its_own(submitted: Competition) -> None:
    words = ["submit", "--check", "result.zip", "--ids", "corpora/aiac/test_b"]
    command = [sys.executable, "-m", "vidsim.launch.cli", *words]
    run = subprocess.run(command, cwd=submitted.folder, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("OK result.zip: ")
    assert run.stderr == ""


def test_the_hidden_pairs_score_the_submission(submitted: Competition) -> None:
    hidden = "src/hidden/test_b_pairs.tsv"
    names = [*(f"emb/job{job}" for job in submitted.size.jobs), "emb/similarity", "emb/fused"]
    submitted.run("score", *names, hidden, "--bootstrap", "100", "--json", "score.json")
    scores = json.loads((submitted.folder / "score.json").read_text())["scores"]
    assert [score["name"] for score in scores] == names
    for score in scores:
        assert score["num_pairs"] == NUM_TEST_PAIRS
        assert submitted.size.least_spearman < score["spearman"] <= score["tie_ceiling"], score
    said = submitted.run("submit", "--check", "result.zip", "--ids", "corpora/aiac/test_b", "--pairs", hidden)
    official = float(said.split("Spearman ")[1].split()[0])
    assert official == pytest.approx(scores[-1]["spearman"], abs=2e-3)
