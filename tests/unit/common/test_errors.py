from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from vidsim.common.errors import UserError, record_name, short_path


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "is wrong"),
        ({"file": "a.tsv", "record": 3}, "a.tsv, line 3: is wrong"),
        ({"file": "a.arrow", "record": 0}, "a.arrow, record 0: is wrong"),
        ({"file": "a.tsv", "record": "v7"}, "a.tsv, record v7: is wrong"),
        ({"record": 3}, "record 3: is wrong"),
        ({"file": "a.jsonl", "field": "title", "fix": "mend it"}, "a.jsonl, field 'title': is wrong. Fix: mend it"),
        ({"field": "--dim"}, "--dim: is wrong"),
    ],
)
def test_one_line_names_the_place(parts: dict[str, str], text: str) -> None:
    assert str(UserError("is\n  wrong", **parts)) == text  # type: ignore[arg-type]


def test_a_path_below_the_working_folder_is_shown_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(UserError("x", file=tmp_path / "data" / "a.arrow")) == "data/a.arrow: x"
    assert short_path(tmp_path) == str(tmp_path)
    assert short_path(f"{tmp_path}2/a") == f"{tmp_path}2/a"
    assert short_path("a/b") == "a/b"


def test_the_words_for_a_record() -> None:
    assert record_name(4, Path("x/pairs.CSV")) == "line 4"
    assert record_name(4, "pretrain_0.tfrecords") == record_name(4, None) == "record 4"


def test_every_part_survives_pickling() -> None:
    error = UserError("is wrong", file="a", record=1, field="b", fix="c")
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.file, again.record, again.field, again.fix) == ("is wrong", "a", 1, "b", "c")
