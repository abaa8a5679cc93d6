"""Recipes, data, checkpoints and surroundings that training cannot work with, and those it goes on in spite of."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PRETRAIN = ("pretrain", "--config", "pretrain.yaml", "--output_dir", "runs/new")
FINETUNE = ("finetune", "--config", "finetune.yaml", "--output_dir", "runs/new")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outputdir: x\n", "b.yaml, field 'outputdir': no such setting. Fix: did you mean output_dir?"),
        ("optimizer: {lr: 1}\n", "b.yaml, field 'optimizer.lr': no such setting. Fix: optimizer has learning_rate, "),
        (
            "objectives: {vtc: {wieght: 1}}\n",
            "b.yaml, field 'objectives.vtc.wieght': no such setting. Fix: did you mean",
        ),
        (
            "loop: {micro_batch_size: many}\n",
            "b.yaml, field 'loop.micro_batch_size': 'many' is not a whole number. Fix:",
        ),
        ("model: {pooling: men}\n", "b.yaml, field 'model.pooling': 'men' is none of mean, first, attention, "),
        ("loop: {micro_batch_size: 0}\n", "field 'loop.micro_batch_size': 0 is below 1"),
        ("seed: 1\nseed: 2\n", "b.yaml, line 2: is not valid YAML (the key 'seed' stands twice). Fix: mend the line"),
        ("loop:\n\tmax_steps: 1\n", "b.yaml, line 2: is not valid YAML (found character"),
        ("", "b.yaml: holds no settings. Fix: see the recipes in launch/recipes/"),
        (
            "trackers: [tensorbord]\n",
            "field 'trackers': 'tensorbord' is not known. Fix: use some of wandb, tensorboard",
        ),
        ("data: {tags: no.txt}\n", "no.txt, field 'data.tags': no such file. Fix: `vidsim convert aiac` writes"),
        ("data: {exclude: [no.txt]}\n", "no.txt, field 'data.exclude': no such file. Fix: `vidsim split` writes"),
        ("data: {stages: [{data: [nowhere]}]}\n", "nowhere: no such folder. Fix: name a folder that `vidsim convert`"),
        ("data: {stages: []}\n", "field 'data.stages': no stage is given. Fix: name at least one data set folder"),
        ("data: {held_out_fraction: 0.999}\n", "data/pointwise: no row is left to train on. Fix: check data.exclude"),
        ("model: {init_from: nowhere}\n", "nowhere, field 'model.init_from': no such folder"),
        ("tokenizer: {path: nowhere}\n", "nowhere, field 'tokenizer.path': no such file or folder"),
        ("objectives: {vtc: null, mlm: null, mfm: null}\n", "field 'objectives': every objective is null. Fix: train"),
        (
            "probe: {data: [data/test_a], pairs: data/pairs.tsv}\n",
            "data/pairs.tsv: 78 of 78 videos are not in data/test_a, first ",
        ),
    ],
)
def test_a_wrong_recipe_is_named_before_anything_is_written(place: Any, text: str, message: str) -> None:
    (place / "b.yaml").write_text(text)
    assert place.fails(*PRETRAIN, "--config", "b.yaml").startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--config nowhere.yaml",
            "nowhere.yaml, --config: no such recipe. Fix: the shipped ones are in launch/recipes/",
        ),
        (
            "--optimizer.learning_rte 1",
            "--optimizer.learning_rte: no such option. Fix: did you mean --optimizer.learning_",
        ),
        ("--loop.max_steps 2.5", "--loop.max_steps: 2.5 is not a whole number. Fix: --help explains it"),
        ("--trackers wandb", "--trackers: must be a list, is 'wandb'. Fix: write [wandb]"),
        ("--resumee", "--resumee: no such option. Fix: did you mean --resume?"),
        ("--output_dir a_file", "a_file, field 'output_dir': cannot be made (File exists). Fix: choose another folder"),
        (
            "--output_dir runs/pre",
            "runs/pre, field 'output_dir': already holds a run with checkpoints. Fix: add --resume true to go on",
        ),
        (
            "--output_dir runs/pre --resume --seed 3",
            "runs/pre/config.yaml: the run was started with another configuration; seed: 2021 -> 3. Fix: resume",
        ),
    ],
)
def test_a_wrong_option_is_named(place: Any, words: str, message: str) -> None:
    assert place.fails(*PRETRAIN, *words.split()).startswith(message)


def test_a_run_that_failed_at_its_start_can_be_mended(place: Any) -> None:
    (place / "tags.txt").write_text("")
    error = place.fails(*PRETRAIN, "--data.tags", "tags.txt", makes=("runs/new",), is_quiet=False)
    assert error == "tags.txt: holds no tags. Fix: write one tag a line"
    (place / "tags.txt").write_text("1\n2\n")
    place.succeeds(*PRETRAIN, "--data.tags", "tags.txt", "--loop.max_steps", "1")


def set_scores(place: Any, change: Callable[[list[str]], list[str]]) -> None:
    path = place / "data/pairs.tsv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_wrong_pairs_are_named(place: Any) -> None:
    good = (place / "data/pairs.tsv").read_text()
    set_scores(place, lambda lines: [lines[0], lines[1].rpartition("\t")[0] + "\t3", *lines[2:]])
    error = place.fails(*FINETUNE)
    assert error == "data/pairs.tsv, line 2, field 'score': 3 is not within 0 to 1. Fix: scale the scores to 0 to 1"
    set_scores(place, lambda lines: [lines[0], "12\t13\t0.5", *good.splitlines()[2:]])
    error = place.fails(*FINETUNE)
    assert re.fullmatch(
        r"data/pairs.tsv: 2 of \d+ videos are not in data/pairwise, first 12, 13\. "
        r"Fix: name the data set that holds them",
        error,
    )
    set_scores(place, lambda lines: [line.rpartition("\t")[0] + "\t0.5" for line in good.splitlines()[1:]])
    assert place.fails(*FINETUNE).startswith("data/pairs.tsv, field 'score': all validation scores are equal")


def test_nothing_to_start_from_is_named(place: Any) -> None:
    error = place.fails(*FINETUNE, "--init_from", "nowhere")
    assert error == "nowhere, field 'init_from': no such folder. Fix: pretrain first"
    error = place.fails(*FINETUNE, "--init_from", "src", makes=("runs/new",), is_quiet=False)
    assert error == "src: holds no checkpoint. Fix: name a run folder or a checkpoint folder"
    assert place.fails("finetune").startswith("--init_from, --data.videos, --data.pairs: not given. Fix: set them in")


def test_another_width_than_the_checkpoints_is_named(place: Any) -> None:
    small = ("--num_videos", "20", "--num_pairs", "20", "--num_files", "1", "--frame_dim", "4")
    place.succeeds("generate", "--out", "wide", *small)
    place.succeeds("convert", "aiac", "wide", "--out", "data4", "--frame_dim", "4", "--num_processes", "1")
    words = ("--data.videos", "[data4/pairwise]", "--data.pairs", "data4/pairs.tsv", "--data.split", "random")
    error = place.fails(*FINETUNE, *words, makes=("runs/new",), is_quiet=False)
    assert error.startswith(
        "runs/pre/checkpoints/step_000004, field 'frames': the data set has vectors of width 4, "
        "the checkpoint reads vectors of width 8. Fix: use features of the extractor"
    )


def test_a_loss_that_is_not_finite_stops_the_run(place: Any) -> None:
    words = ("--optimizer.learning_rate", "1e30", "--loop.max_grad_norm", "null")
    error = place.fails(*PRETRAIN, *words, makes=("runs/new",), is_quiet=False)
    assert error.startswith("step 1: not finite: ")
    assert "rows of this process: " in error
    assert error.endswith("Fix: lower the learning rate, or look for damage in the data with `vidsim verify`")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_checkpoint_that_is_cut_short_is_refused(place: Any) -> None:
    best = os.readlink(place / "runs/pre/checkpoints/best")
    cut(place / f"runs/pre/checkpoints/{best}/model.safetensors")
    embed = ("embed", "runs/pre", "data/test_b", "--out", "x")
    older = "runs/pre/checkpoints/step_000002"
    for words, makes in ((embed, ()), (FINETUNE, ("runs/new",))):
        error = place.fails(*words, makes=makes, is_quiet=False)
        assert error.startswith("runs/pre/checkpoints/best: is damaged: ")
        assert f"{best}/model.safetensors: has " in error
        assert error.endswith(f"Fix: name another checkpoint of this run, such as {older}")
    place.succeeds("embed", older, "data/test_b", "--out", "x")
    place.succeeds(*FINETUNE, "--init_from", older, "--loop.max_steps", "1")


def test_a_bare_checkpoint_folder_is_checked_too(place: Any) -> None:
    shutil.copytree(place / "runs/pre/checkpoints/step_000004", place / "hub")
    embed = ("embed", "hub", "data/test_b", "--out", "x")
    for name in ("MANIFEST.json", "COMPLETE"):
        (place / f"hub/{name}").unlink()
    cut(place / "hub/model.safetensors")
    assert place.fails(*embed).startswith("hub: cannot be loaded (")
    shutil.copy(place / "runs/pre/checkpoints/step_000004/model.safetensors", place / "hub")
    (place / "hub/tokenizer.json").unlink()  # transformers would go on with an empty vocabulary
    assert place.fails(*embed) == "hub: holds no tokenizer.json. Fix: copy the whole checkpoint folder"
    (place / "hub/model.safetensors").unlink()
    assert place.fails(*embed) == "hub: holds no model.safetensors. Fix: name a folder below checkpoints/"


@pytest.mark.parametrize(
    "file", ["model.safetensors", "training_state/module.safetensors", "training_state/state.json"]
)
def test_resuming_falls_back_to_the_older_checkpoint_and_says_so(place: Any, file: str) -> None:
    newest = "runs/pre/checkpoints/step_000004"
    cut(place / f"{newest}/{file}")
    code, said, err = place.run("pretrain", "--config", "pretrain.yaml", "--resume")
    assert code == 0, err
    assert err.splitlines()[0].startswith(f"checkpoint not used: {newest}/{file}: has ")
    assert "resumed at step 2" in said
    steps = [json.loads(line)["step"] for line in (place / "runs/pre/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    place.succeeds("embed", "runs/pre", "data/test_b", "--out", "x")


def test_no_whole_checkpoint_at_all_is_an_error(place: Any) -> None:
    for step in ("step_000002", "step_000004"):
        cut(place / f"runs/pre/checkpoints/{step}/model.safetensors")
    error = place.fails("pretrain", "--config", "pretrain.yaml", "--resume", is_quiet=False)
    assert error.startswith("runs/pre/checkpoints: none of the 2 checkpoints is whole; the newest: ")
    assert error.endswith("Fix: restore one from a copy, or start again in another run folder")


def test_no_room_for_a_checkpoint_keeps_the_older_ones(place: Any, file_limit: Any) -> None:
    before = {name for name in place.files() if "/checkpoints/" in name}
    words = ("pretrain", "--config", "pretrain.yaml", "--resume", "--loop.max_steps", "6")
    with file_limit(30_000):
        error = place.fails(*words, is_quiet=False)
    assert error.startswith("runs/pre/checkpoints/step_000005: grew beyond the limit on the size of a file. Fix: raise")
    assert {name for name in place.files() if "/checkpoints/" in name} == before
    place.succeeds(*words)


def test_wandb_without_a_key_runs_offline_and_the_run_goes_on(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(place / "no_netrc"))
    err = place.succeeds(*PRETRAIN, "--trackers", "[wandb]", "--loop.max_steps", "1")
    lines = [line for line in err.splitlines() if "wandb" in line]
    assert lines == ["wandb: no key found, so it runs offline; later: wandb sync runs/new/wandb/offline-run-*"]
    assert list((place / "runs/new/wandb").glob("offline-run-*/*.wandb"))


def run_apart(place: Any, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", **variables}
    return subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_world_size_that_is_no_number_is_refused(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    error = place.fails(*PRETRAIN)
    assert error == "field 'WORLD_SIZE': 'two' is not a number of processes. Fix: unset it, or use torchrun"


def test_a_world_size_set_by_hand_is_refused(place: Any) -> None:
    result = run_apart(place, sys.executable, "-m", "vidsim.launch.cli", *PRETRAIN, WORLD_SIZE="2")
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: field 'WORLD_SIZE': the environment says that 2 processes were started, but this one cannot reach the "
        "others. Fix: unset it to train with one; for 2: torchrun --standalone --nproc_per_node 2 "
    )
    assert len(result.stderr.splitlines()) == 1
    assert not (place / "runs/new").exists()


@pytest.mark.slow
@pytest.mark.multi_process
def test_two_processes_on_the_cpu_that_accelerate_does_not_start_are_refused(place: Any) -> None:
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    script = str(ROOT / "pretrain" / "run.py")
    result = run_apart(place, accelerate, "launch", "--cpu", "--num_processes", "2", script, *PRETRAIN[1:])
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "asked for several processes on the CPU but starts only this one. Fix: torchrun" in errors[0]
    assert not (place / "runs/new").exists()
