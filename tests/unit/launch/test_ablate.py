from __future__ import annotations

import shutil
import statistics
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from vidsim.common.files import read_json
from vidsim.data.embeddings import read_embeddings
from vidsim.data.pairs import read_pairs
from vidsim.launch.ablation_data import DataFiles
from vidsim.launch.ablation_list import overlay, read_ablation
from vidsim.launch.ablation_table import Row, differences, dot_plot, markdown
from vidsim.launch.cli import main

READY = sorted((Path(__file__).resolve().parents[3] / "launch/recipes/ablations").glob("*.yaml"))
CORPUS = {"num_videos": 80, "num_pairs": 60, "num_test_pairs": 30, "frame_dim": 8, "num_tags": 20, "num_files": 1}
TINY: dict[str, Any] = {
    "data": {"generate": {**CORPUS, "seed": 3}},
    "pretrain": {
        "data": {"held_out_fraction": 0.1},
        "tokenizer": {"vocab_size": 200},
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 8, "max_frames": 4},
        "loop": {"micro_batch_size": 16, "max_steps": 2},
    },
    "finetune": {"num_epochs": 1, "loop": {"micro_batch_size": 16}},
    "baseline": "base",
    "variants": {
        "taught": {"teacher": "base", "finetune": {"task": {"distill_weight": 0.5}}},
        "base": {},
        "base again": {"pretrain": {"loop": {"max_steps": 2}}},
        "raw labels": {"finetune": {"task": {"label": "raw"}}},
        "untrained": {"pretrain": None, "against": "raw labels"},
        "too fast": {"finetune": {"optimizer": {"learning_rate": 1.0e30}}},
    },
}


def write(folder: Path, content: dict[str, Any], name: str = "tiny") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def ablate(path: Path, out: Path, *options: str) -> int:
    return main(["ablate", str(path), "--out", str(out), *options])


def results(out: Path, name: str = "tiny") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in read_json(out / "results.json")[name]["variants"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list that ran once with two seeds; copied by the tests that change it."""
    folder = tmp_path_factory.mktemp("ablate")
    assert ablate(write(folder, TINY), folder / "out", "--seeds", "2") == 2
    return folder


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_cell_has_a_score_and_the_failed_one_is_named(finished: Path) -> None:
    found = results(finished / "out")
    assert list(found) == list(TINY["variants"])
    for name, row in found.items():
        assert len(row["test_spearman"]) == (0 if name == "too fast" else 2)
    scores = {name: list(row["test_spearman"].values()) for name, row in found.items()}
    assert found["base"]["mean"] == pytest.approx(sum(scores["base"]) / 2)
    assert found["base"]["sd"] == pytest.approx(abs(scores["base"][0] - scores["base"][1]) / 2**0.5)
    assert list(found["raw labels"]["differences"].values()) == pytest.approx(
        np.subtract(scores["raw labels"], scores["base"]).tolist()
    )
    assert found["untrained"]["against"] == "raw labels"
    assert list(found["untrained"]["differences"].values()) == pytest.approx(
        np.subtract(scores["untrained"], scores["raw labels"]).tolist()
    )
    assert found["base"]["against"] is None
    assert "not finite" in found["too fast"]["errors"]["0"]
    table = (finished / "out/results.md").read_text(encoding="utf-8")
    assert "| too fast | not finished |" in table
    assert "- **too fast**, seed 1, failed: " in table


def test_equal_settings_are_computed_once(finished: Path) -> None:
    out = finished / "out"
    found = results(out)
    assert found["base"]["cells"] == found["base again"]["cells"]
    # Per seed: one pretraining and an untrained encoder; base, raw labels, untrained, taught, and the one that failed.
    assert len(list((out / "pretrained").iterdir())) == 2 * 2
    assert len(list((out / "cells").iterdir())) == 2 * 5
    logs = [log.read_text(encoding="utf-8") for log in (out / "pretrained").glob("*/log.txt")]
    assert [log.count("best checkpoint: ") for log in logs] == [1] * 4


def test_a_score_is_that_of_the_hidden_pairs(finished: Path, tmp_path: Path) -> None:
    """The same by the commands themselves, from a cell's own recipe."""
    out = finished / "out"
    name = results(out)["raw labels"]["cells"][0]
    recipe = yaml.safe_load((out / "cells" / name / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["seed"], recipe["task"]["label"]) == (0, "raw")
    corpus = next((out / "corpora").iterdir())
    pretrained = [folder for folder in (out / "pretrained").glob("*-seed0") if "max_steps: 2" in recipe_of(folder)]
    run, test = str(tmp_path / "run"), [str(corpus / "test_a"), str(corpus / "test_b")]
    start = ["--init_from", str(pretrained[0] / "run"), "--output_dir", run]
    assert main(["finetune", "--config", str(out / "cells" / name / "recipe.yaml"), *start]) == 0
    assert main(["embed", run, *test, "--out", str(tmp_path / "embeddings")]) == 0
    pairs = [read_pairs(corpus / f"hidden/test_{part}_pairs.tsv") for part in "ab"]
    lines = [
        f"{one}\t{two}\t{score}"
        for part in pairs
        for one, two, score in zip(part.id1, part.id2, part.score, strict=True)
    ]
    (tmp_path / "pairs.tsv").write_text("\n".join(["id1\tid2\tscore", *lines]) + "\n", encoding="utf-8")
    scores = tmp_path / "score.json"
    assert main(["score", str(tmp_path / "embeddings"), str(tmp_path / "pairs.tsv"), "--json", str(scores)]) == 0
    expected = read_json(scores)["scores"][0]["spearman"]
    assert results(out)["raw labels"]["test_spearman"]["0"] == pytest.approx(expected, abs=1e-6)


def recipe_of(folder: Path) -> str:
    return (folder / "recipe.yaml").read_text(encoding="utf-8")


def test_the_teacher_is_the_cell_of_the_same_seed(finished: Path) -> None:
    out = finished / "out"
    found = results(out)
    corpus = next((out / "corpora").iterdir())
    for seed in (0, 1):
        recipe = yaml.safe_load(recipe_of(out / "cells" / found["taught"]["cells"][seed]))
        teacher = Path(recipe["data"]["teacher"])
        assert teacher.parent.name == found["base"]["cells"][seed]
        assert set(read_embeddings(teacher).ids) == set(read_pairs(corpus / "split/train.tsv").unique_ids())


def test_started_again_only_what_is_missing_is_computed(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = again / "out"
    before = results(out)
    lost = out / "cells" / before["raw labels"]["cells"][1]
    shutil.rmtree(lost)
    capsys.readouterr()
    assert ablate(again / "tiny.yaml", out, "--seeds", "2", "--only", "raw labels", "base") == 0
    said = capsys.readouterr().err
    assert "4 cells, 3 of them finished before" in said
    assert [line for line in said.splitlines() if "test Spearman" in line and "seed" in line] == [
        line for line in said.splitlines() if "tiny: raw labels, seed 1: test Spearman" in line
    ]
    assert "pretrained" not in said
    assert results(out)["raw labels"]["test_spearman"] == before["raw labels"]["test_spearman"]


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path, out = write(tmp_path, TINY), tmp_path / "out"
    options = ("--seeds", "1", "--only", "base")
    assert ablate(path, out, *options) == 0
    before = results(out)["base"]
    (pretrained,) = (out / "pretrained").iterdir()
    (pretrained / "result.json").unlink()
    shutil.rmtree(out / "cells")
    assert ablate(path, out, *options) == 0
    assert "resumed at step 2" in (pretrained / "log.txt").read_text(encoding="utf-8")
    after = results(out)["base"]
    assert after["test_spearman"] == before["test_spearman"]
    assert before["pretrain_seconds"] > 0
    assert after["pretrain_seconds"] is None  # a part of it was spent before
    assert after["seconds"] > 0


def test_a_changed_setting_makes_only_its_own_cells_anew(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = deepcopy(TINY)
    content["variants"]["raw labels"]["finetune"]["num_epochs"] = 2
    del content["variants"]["too fast"]
    capsys.readouterr()
    assert ablate(write(again, content), again / "out", "--seeds", "2") == 0
    said = capsys.readouterr().err
    assert "8 cells, 6 of them finished before" in said
    assert said.count("test Spearman") == 2


def test_other_data_make_everything_anew(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = deepcopy(TINY)
    content["data"]["generate"]["seed"] = 4
    capsys.readouterr()
    assert ablate(write(again, content, "other"), again / "out", "--seeds", "1", "--only", "base") == 0
    assert "1 cells, 0 of them finished before" in capsys.readouterr().err
    assert set(read_json(again / "out/results.json")) == {"tiny", "other"}  # the earlier table stays
    assert "## tiny" in (again / "out/results.md").read_text(encoding="utf-8")


def test_folders_and_pairs_of_ones_own_from_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    corpus = next((finished / "out/corpora").iterdir())
    checkpoint = next((finished / "out/pretrained").iterdir()) / "run"
    content = {
        "data": {
            "videos": [str(corpus / "pairwise")],
            "train": str(corpus / "split/train.tsv"),
            "validation": str(corpus / "split/validation.tsv"),
            "test_videos": [str(corpus / "test_a")],
            "test": [str(corpus / "hidden/test_a_pairs.tsv")],
        },
        "finetune": {"init_from": str(checkpoint), "num_epochs": 1},
        "baseline": "mse",
        "variants": {"mse": None, "cosent": {"finetune": {"task": {"loss": "cosent"}}}},
    }
    path, out = write(tmp_path, content), tmp_path / "out"
    assert ablate(path, out, "--seeds", "1") == 0
    assert set(results(out)["cosent"]["test_spearman"]) == {"0"}
    assert not (out / "pretrained").exists()

    content["data"]["test"] = [str(corpus / "split/train.tsv")]  # type: ignore[index]
    content["data"]["test_videos"] = [str(corpus / "pairwise")]  # type: ignore[index]
    assert ablate(write(tmp_path, content), tmp_path / "leak") == 2
    assert not (tmp_path / "leak").exists()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"varaints": {}}, "did you mean variants?"),
    "unknown data key": ({"data": {"generate": {"num_video": 3}}}, "field 'data.generate.num_video'"),
    "both kinds of data": ({"data": {"train": "a.tsv"}}, "field 'data.train': goes not together with `generate`"),
    "no test pairs": ({"data": {"generate": None, "videos": ["a"]}}, "field 'data.train': is not given"),
    "unknown variant": ({"baseline": "bases"}, "there is no variant 'bases'. Fix: did you mean 'base'?"),
    "unknown teacher": ({"variants": {"taught": {"teacher": "bse"}}}, "field 'variants.taught.teacher'"),
    "a taught teacher": ({"variants": {"base": {"teacher": "taught"}}}, "has a teacher itself"),
    "unknown setting": (
        {"variants": {"base": {"finetune": {"task": {"los": "mse"}}}}},
        "field 'variants.base.finetune.task.los': no such setting. Fix: did you mean task.loss?",
    ),
    "wrong value": (
        {"variants": {"base": {"pretrain": {"objectives": {"vtc": {"loss": "bcee"}}}}}},
        "field 'variants.base.pretrain.objectives.vtc.loss': 'bcee' is none of bce, sampled_softmax",
    ),
    "wrong base": ({"finetune": {"num_epoch": 1}}, "field 'finetune.num_epoch'"),
    "impossible value": (
        {"variants": {"base": {"finetune": {"num_epochs": -1}}}},
        "field 'variants.base.finetune.num_epochs': -1.0 is not above 0",
    ),
    "a part refuses": (
        {"variants": {"base": {"pretrain": {"objectives": {"mfm": {"temperature": 0.0}}}}}},
        "mfm.temperature must be above 0",
    ),
    "settings that exclude each other": (
        {"variants": {"base": {"finetune": {"task": {"distill_weight": 0.5}}}}},
        "data.teacher and task.distill_weight go together",
    ),
    "a seed": ({"finetune": {"seed": 3}}, "field 'finetune.seed': is set for each cell"),
    "no recipe": ({"pretrain": {"recipes": ["nowhere.yaml"]}}, "no such recipe"),
    "no fields": ({"variants": {"base": {"finetune": 3}}}, "field 'variants.base.finetune': 3 is not a set of fields"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_list_is_refused_before_anything_is_done(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, overlay(TINY, change))
    assert ablate(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_missing_data_and_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = deepcopy(TINY)
    content["data"] = {"videos": ["nowhere"], "train": "a.tsv", "validation": "b.tsv", "test": ["c.tsv"]}
    assert ablate(write(tmp_path, content), tmp_path / "out") == 2
    assert "field 'data.pretrain': is not given" in capsys.readouterr().err
    content["data"]["pretrain"] = ["nowhere"]
    assert ablate(write(tmp_path, content), tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert ablate(write(tmp_path, TINY), tmp_path / "out", "--only", "bse") == 2
    assert "did you mean 'base'?" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    twice = [str(write(tmp_path, TINY)), str(write(tmp_path / "other", TINY))]
    assert main(["ablate", *twice, "--out", str(tmp_path / "out")]) == 2
    assert "two lists have this name" in capsys.readouterr().err


def test_recipes_lie_under_the_lists_own_fields(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("seed: 5\nnum_epochs: 3\ntask: {loss: lbpc, temperature: 0.5}\n")
    content = deepcopy(TINY)
    content["finetune"] = {"recipes": ["one.yaml"], "num_epochs": 4}
    content["variants"] = {"base": {"finetune": {"task": {"temperature": 0.7}}}, "other": {}}
    ablation = read_ablation(write(tmp_path, content), tmp_path / "out")
    base, other = (ablation.variant(name).finetune for name in ("base", "other"))
    assert (base["num_epochs"], base["task"]["loss"], base["task"]["temperature"]) == (4.0, "lbpc", 0.7)
    assert other["task"]["temperature"] == 0.5


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate(write(tmp_path, TINY), tmp_path / "out", "--seeds", "2", "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 6 variants x 2 seeds = 12 cells, 4 pretrainings, baseline 'base'"
    assert lines[1:3] == [
        "  taught: finetune.task.distill_weight: 0.5; teacher: base",
        "  base: as it stands",
    ]
    assert lines[5] == "  untrained: pretrain: null"
    assert not (tmp_path / "out").exists()


def test_the_ready_lists_are_sound_and_share_what_they_can(tmp_path: Path) -> None:
    lists = {path.stem: read_ablation(path, tmp_path) for path in READY}
    for ablation in lists.values():
        every = [str(variant.finetune) + str(variant.pretrain) for variant in ablation.variants]
        assert len(set(every)) == len(every)  # no two variants are the same by mistake
    assert set(lists) == {"choices", "epochs", "size", "tasks", "winners"}
    assert len({str(ablation.files) for ablation in lists.values()}) == 1
    base = lists["choices"].variant("baseline")
    assert lists["epochs"].variant("4 epochs").pretrain == base.pretrain
    assert lists["size"].variant("base, 2 x 128").pretrain == base.pretrain
    assert lists["tasks"].variant("VTC + MLM + MFM").pretrain == lists["epochs"].variant("8 epochs").pretrain
    winners = lists["winners"].variant("tags from the embedding, CoSENT")
    assert winners.pretrain == lists["choices"].variant("VTC from the embedding").pretrain
    assert winners.finetune == lists["choices"].variant("CoSENT").finetune
    alike = [variant.name for variant in lists["choices"].variants if variant.pretrain == base.pretrain]
    assert len(alike) == 10


def test_a_row_by_hand() -> None:
    assert differences({0: 0.5, 2: 0.75}, {0: 0.25, 1: 0.1}) == {0: 0.25}
    rows = [
        Row(name="a", scores={0: 0.5, 1: 0.7}, differences={}, seconds=3.4, pretrain_seconds=60.2),
        Row(name="b|c", scores={0: 0.55}, differences={0: 0.05}, against="a", errors={1: "no luck"}),
    ]
    lines = markdown("T", rows).splitlines()
    assert lines[4] == "| a | 0.6000 ± 0.1414 | 0.5000, 0.7000 |  |  |  | 60 + 3 |"
    assert lines[5] == "| b\\|c | 0.5500 | 0.5500 | a | +0.0500 | +0.0500 |  |"
    assert lines[-1] == "- **b|c**, seed 1, failed: no luck"
    assert statistics.stdev([0.5, 0.7]) == pytest.approx(rows[0].as_dict()["sd"])


def test_the_plot_shows_every_seed_in_its_place() -> None:
    rows = [
        Row(name="a < b", scores={0: 0.2, 1: 0.4}, differences={}),
        Row(name="one", scores={0: 0.3}, differences={}),
        Row(name="none", scores={}, differences={}),
    ]
    svg = ElementTree.fromstring(dot_plot("title & more", rows, "a < b"))
    dots = [float(dot.attrib["cx"]) for dot in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(dots) == 3
    assert dots[2] == pytest.approx((dots[0] + dots[1]) / 2, abs=0.1)
    lines = list(svg.iter("{http://www.w3.org/2000/svg}line"))
    baseline = [float(line.attrib["x1"]) for line in lines if line.attrib["class"] == "baseline"]
    assert baseline == [pytest.approx(dots[2], abs=0.1)]  # the mean of .2 and .4
    assert dot_plot("nothing yet", rows[2:], "none") == ""


def test_fields_for_the_commands() -> None:
    files = DataFiles(
        folder=None,
        pretrain=["p"],
        exclude=["x.txt"],
        tags=None,
        videos=["v"],
        train="t.tsv",
        validation="d.tsv",
        test_videos=["w"],
        test=["e.tsv"],
    )
    assert files.pretrain_fields()["data"]["stages"] == [{"data": ["p"], "num_epochs": 1.0}]
    assert files.finetune_fields() == {"data": {"videos": ["v"], "pairs": "t.tsv", "validation": "d.tsv"}}
