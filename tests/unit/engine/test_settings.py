from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from vidsim.common.errors import UserError
from vidsim.engine.settings import parse_settings


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    rate: float = 1e-4
    """How fast."""
    kind: Literal["a", "b"] = "a"
    """Which."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The whole."""

    part: Part = field(default_factory=Part)
    """A part."""
    maybe: Part | None = None
    """Another."""
    names: list[str] = field(default_factory=list)
    """Some names."""
    resume: bool = False
    """Go on."""


def parse(*arguments: str, default: Path | None = None) -> Whole:
    config = parse_settings(Whole, arguments, prog="x", description="d", default_recipe=default).config
    assert isinstance(config, Whole)
    return config


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text("part: {rate: 1e-3, kind: b}\nnames: [x, y]\n", encoding="utf-8")
    return path


def test_command_line_wins_over_last_recipe_over_first(recipe: Path, tmp_path: Path) -> None:
    second = tmp_path / "b.yaml"
    second.write_text("part: {rate: 2e-3}\n", encoding="utf-8")
    config = parse("--config", str(recipe), "--config", str(second), "--names", "[z]")
    assert config == Whole(part=Part(rate=2e-3, kind="b"), names=["z"])
    assert parse("--config", str(recipe), "--part.rate", "5").part == Part(rate=5.0, kind="b")


def test_no_arguments_take_the_default_recipe(recipe: Path) -> None:
    assert parse(default=recipe).part.rate == 1e-3
    assert parse("--resume", "false", default=recipe).part.rate == 1e-4


def test_switches_need_no_value() -> None:
    assert parse("--resume").resume
    assert parse("--resume", "--part.rate", "1").resume
    assert not parse("--resume", "false").resume


def test_optional_parts_can_be_set_and_unset() -> None:
    assert parse("--maybe.rate", "3").maybe == Part(rate=3.0)
    assert parse("--maybe", "null").maybe is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("part: {rte: 1}", "did you mean part.rate?"),
        ("prat: {rate: 1}", "did you mean part?"),
        ("part: {rate: fast}", "part.rate"),
        ("part: {kind: c}", "part.kind"),
        ("part: [", "line 1: is not valid YAML"),
    ],
)
def test_a_broken_recipe_is_named_with_the_fix(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        parse("--config", str(path))
    assert "broken.yaml" in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml, --config: no such recipe"):
        parse("--config", "nowhere.yaml")


def test_the_resolved_configuration_reads_back_equal(recipe: Path, tmp_path: Path) -> None:
    settings = parse_settings(Whole, ["--config", str(recipe), "--maybe.kind", "b"], prog="x", description="d")
    copy = tmp_path / "resolved.yaml"
    copy.write_text(settings.yaml, encoding="utf-8")
    assert parse("--config", str(copy)) == settings.config
    assert set(yaml.safe_load(settings.yaml)) == {"part", "maybe", "names", "resume"}


@dataclass(frozen=True, kw_only=True)
class Picky:
    """A part that refuses values as it is made."""

    width: int = 1
    """How wide."""

    def __post_init__(self) -> None:
        """Refuse."""
        if self.width < 1:
            raise ValueError(f"width must be above 0, not {self.width}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One part or none."""

    picky: Picky | None = None
    """A part."""
    limit: float | None = 1.0
    """A number; null: none."""
    other: Picky | None = field(default_factory=Picky)
    """A part that is there unless it is left out."""


def test_what_a_part_refuses_as_it_is_made_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="width must be above 0, not -1"):
        parse_settings(Choice, ["--picky.width", "-1"], prog="x", description="d")


def test_what_is_set_to_null_stays_null_when_it_is_read_back(tmp_path: Path) -> None:
    settings = parse_settings(Choice, ["--limit", "null", "--other", "null"], prog="x", description="d")
    assert settings.config == Choice(limit=None, other=None)
    copy = tmp_path / "resolved.yaml"
    copy.write_text(settings.yaml, encoding="utf-8")
    assert parse_settings(Choice, ["--config", str(copy)], prog="x", description="d").config == settings.config
