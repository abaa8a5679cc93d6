from __future__ import annotations

import math
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.model_card import write_model_card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-encoder"
    VidsimConfig(max_asr_tokens=20).save_pretrained(folder)
    return folder


def test_card_has_the_numbers_for_people_and_machines(folder: Path) -> None:
    path = write_model_card(
        folder,
        {"spearman": 0.8861234, "mse": 0.0288},
        "tiny-encoder",
        ["AIAC 2021", "own videos", "AIAC 2021"],
        base_model="hfl/chinese-roberta-wwm-ext",
    )
    assert path == folder / "README.md"
    card = ModelCard.load(path)
    assert card.data.base_model == "hfl/chinese-roberta-wwm-ext"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        "spearman": 0.8861234,
        "mse": 0.0288,
    }
    assert {r.dataset_name for r in card.data.eval_results} == {"AIAC 2021, own videos"}
    for line in (
        "# tiny-encoder",
        "| spearman | 0.886123 |",
        "| mse | 0.0288 |",
        "- Started from: hfl/chinese-roberta-wwm-ext",
        "- Data: AIAC 2021, own videos",
        "| title | first 33 tokens |",
        "| speech text | first 20 tokens |",
        "| frames | up to 32 vectors of width 1536; of more, the centres of evenly long segments |",
    ):
        assert line in card.text.splitlines()
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_card_without_anything_known(folder: Path) -> None:
    text = write_model_card(folder, {}, "name", ["videos"]).read_text(encoding="utf-8")
    assert "None were recorded." in text
    assert "- Started from: fresh weights" in text
    assert "base_model" not in text


def test_paths_of_this_machine_stay_out(folder: Path, tmp_path: Path) -> None:
    text = write_model_card(
        folder, {"spearman": 0.5}, "name", [str(tmp_path / "videos")], base_model=str(tmp_path / "my-bert")
    ).read_text()
    assert str(tmp_path) not in text
    assert "- Data: videos" in text
    assert "- Started from: my-bert" in text


def test_a_card_replaces_the_one_before(folder: Path) -> None:
    write_model_card(folder, {"spearman": 0.5}, "name", ["videos"])
    text = write_model_card(folder, {"spearman": 0.75}, "name", ["videos"]).read_text()
    assert "| spearman | 0.75 |" in text
    assert "0.5 |" not in text


def test_what_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'spearman' is nan"):
        write_model_card(folder, {"spearman": math.nan}, "name", ["videos"])
    with pytest.raises(ValueError, match="no saved encoder"):
        write_model_card(tmp_path, {}, "name", ["videos"])
    assert not (folder / "README.md").exists()
