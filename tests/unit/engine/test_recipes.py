from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.recipes import check_options, check_recipe, read_recipe


@dataclass(frozen=True, kw_only=True)
class Stage:
    data: list[str]
    num_epochs: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Rate:
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    kind: Literal["cosine", "linear"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Config:
    stages: list[Stage] = field(default_factory=list)
    rate: Rate = field(default_factory=Rate)
    extra: Rate | None = None
    num_steps: int | None = None
    trackers: list[str] = field(default_factory=list)
    resume: bool = False
    output_dir: str = "runs/x"


GOOD = """
stages:
  - {data: [a, b], num_epochs: 2}
rate: {learning_rate: 1e-3, betas: [0.8, 1e-1], kind: linear}
extra: null
num_steps: 3
trackers: [wandb]
resume: true
"""


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_good_recipe_passes(tmp_path: Path) -> None:
    content = read_recipe(write(tmp_path, GOOD))
    assert content["stages"] == [{"data": ["a", "b"], "num_epochs": 2}]
    check_recipe(content, Config, "r.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "r.yaml: holds no settings. Fix: see the recipes in launch/recipes/"),
        ("- 1\n", "r.yaml: must hold `name: value` settings. Fix: see the recipes in launch/recipes/"),
        ("a: 1\nb: [2\n", "r.yaml, line 3: is not valid YAML (expected ',' or ']', but got '<stream end>')"),
        ("a: 1\n\tb: 2\n", "r.yaml, line 2: is not valid YAML (found character '\\t' that cannot start any token)"),
        ("a: {b: 1,\n b: 2}\n", "r.yaml, line 2: is not valid YAML (the key 'b' stands twice). Fix: mend the line"),
        (b"\xff\xfe", "r.yaml: is not UTF-8 text (byte 0)"),
    ],
)
def test_what_is_no_recipe_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_recipe(write(tmp_path, content))
    assert str(caught.value).startswith(message)


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(UserError, match=r"^nowhere\.yaml, --config: no such recipe\. Fix: the shipped ones"):
        read_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"outputdir": "x"}, "'outputdir': no such setting. Fix: did you mean output_dir?"),
        ({"rate": {"lerning_rate": 1}}, "'rate.lerning_rate': no such setting. Fix: did you mean rate.learning_rate?"),
        ({"rate": {"lr": 1}}, "'rate.lr': no such setting. Fix: rate has learning_rate, betas, kind"),
        ({"learning_rate": 1}, "'learning_rate': no such setting. Fix: did you mean extra.learning_rate?"),
        (
            {"xyz": 1},
            "'xyz': no such setting. Fix: it has stages, rate, extra, num_steps, trackers, resume, output_dir",
        ),
        ({"stages": [{"epochs": 1}]}, "'stages[0].epochs': no such setting. Fix: did you mean stages[0].num_epochs?"),
        ({"stages": ["a"]}, "'stages[0]': holds settings of its own, not 'a'. Fix: they are data, num_epochs"),
        ({"rate": None}, "'rate': holds settings of its own, not null. Fix: they are learning_rate, betas, kind"),
        ({"extra": 3}, "'extra': holds settings of its own, not 3. Fix: they are learning_rate, betas, kind"),
        ({"rate": {"learning_rate": "fast"}}, "'rate.learning_rate': 'fast' is not a number. Fix: --help explains it"),
        ({"rate": {"kind": "cosin"}}, "'rate.kind': 'cosin' is none of cosine, linear. Fix: did you mean cosine?"),
        ({"rate": {"betas": [0.9]}}, "'rate.betas': [0.9] is not a list of 2. Fix: --help explains it"),
        ({"num_steps": 2.5}, "'num_steps': 2.5 is not a whole number. Fix: --help explains it"),
        ({"num_steps": True}, "'num_steps': True is not a whole number. Fix: --help explains it"),
        ({"trackers": "wandb"}, "'trackers': must be a list, is 'wandb'. Fix: write [wandb]"),
        ({"resume": "maybe"}, "'resume': 'maybe' is not true or false. Fix: --help explains it"),
        ({"output_dir": ["a"]}, "'output_dir': ['a'] is not text. Fix: --help explains it"),
    ],
)
def test_a_wrong_setting_is_named_with_the_right_ones(content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_recipe(content, Config, "r.yaml")
    assert str(caught.value) == f"r.yaml, field {message}"


@pytest.mark.parametrize(
    "line",
    [
        "--config a.yaml --config=b.yaml --rate.learning_rate 1e-4 --num_steps null --extra null",
        "--stages [{data:[a]}] --trackers+ wandb --resume true --output_dir 12 --extra.kind linear",
        "--rate rate.yaml --extra.kind linear",
        "--print_config --help",
    ],
)
def test_good_options_pass(line: str) -> None:
    check_options(line.split(), Config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--ratte.kind linear", "--ratte: no such option. Fix: did you mean --rate?"),
        ("--resumee", "--resumee: no such option. Fix: did you mean --resume?"),
        ("--rate.lr=1", "--rate.lr: no such option. Fix: rate has learning_rate, betas, kind"),
        ("--num_steps", "--num_steps: needs a value. Fix: --help explains it"),
        ("--num_steps --resume true", "--num_steps: needs a value. Fix: --help explains it"),
        ("--config", "--config: needs a value. Fix: --help explains it"),
        ("extra", "'extra' belongs to no option. Fix: write --name value"),
        ("--rate.kind cubic", "--rate.kind: 'cubic' is none of cosine, linear. Fix: --help explains it"),
        ("--trackers wandb", "--trackers: must be a list, is 'wandb'. Fix: write [wandb]"),
    ],
)
def test_a_wrong_option_is_named(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_options(line.split(), Config)
    assert str(caught.value) == message
