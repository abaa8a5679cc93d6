"""Every dirty row that `vidsim generate --plant_errors` puts into a competition is named by the converter."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.data.synthetic_errors import PLANTED_FILE
from vidsim.launch.cli import dispatch

NUM_VIDEOS = 60
OPTIONS = ["--frame_dim", "8", "--num_processes", "1"]
TEXT_FILES = ("pairwise/label.tsv", "tag_list.txt")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "src"
    size = ["--num_videos", str(NUM_VIDEOS), "--num_pairs", "40", "--num_test_pairs", "20", "--num_files", "20"]
    assert dispatch(["generate", "--out", str(folder), *size, "--frame_dim", "8", "--plant_errors"]) == 0
    return folder


def planted(source: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((source / PLANTED_FILE).read_text())
    return rows


def test_each_kind_is_planted_once(source: Path) -> None:
    kinds = [row["kind"] for row in planted(source)]
    assert len(kinds) == len(set(kinds)) == 27


def test_quarantine_names_each_and_keeps_all_the_rest(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert dispatch(["convert", "aiac", str(source), "--out", str(out), *OPTIONS, "--on_error", "quarantine"]) == 0
    failures = [json.loads(line) for path in out.rglob("failures.jsonl") for line in path.read_text().splitlines()]
    found = sorted(str((row["file"], row["record"], row["field"])) for row in failures)
    assert found == sorted(str((row["file"], row["record"], row["field"])) for row in planted(source))
    assert all(row["message"] for row in failures)
    said = capsys.readouterr().out
    assert f"pointwise: {NUM_VIDEOS} videos in 21 shards; records left out: 18, see " in said
    assert "pairs.tsv: 40 pairs; lines left out: 5, see " in said
    assert dispatch(["verify", str(out), "--quiet"]) == 0


def alone(source: Path, row: dict[str, Any], folder: Path) -> int | None:
    """Copy the fault without the others; the record or line at which it stands there."""
    target = folder / row["file"]
    target.parent.mkdir(parents=True)
    if row["file"] not in TEXT_FILES:
        shutil.copy(source / row["file"], target)
        return row["record"]
    lines = (source / row["file"]).read_text().splitlines()
    dirty = {each["record"] for each in planted(source) if each["file"] == row["file"]}
    clean = [line for number, line in enumerate(lines, 1) if number not in dirty]
    target.write_text("\n".join([*clean, lines[row["record"] - 1]]) + "\n")
    with contextlib.suppress(FileExistsError):
        (folder / "pairwise").mkdir()
    shutil.copy(source / "pairwise" / "pairwise.tfrecords", folder / "pairwise")
    return len(clean) + 1


# All but the id that stands in two files, for which one file is not enough.
KINDS = """missing_title integer_id empty_id two_titles title_not_utf8 asr_not_utf8 text_tags two_categories
float_frames narrow_frame nan_in_frame infinity_in_frame not_an_example data_checksum duplicate_id_same_file
length_checksum truncated pair_without_video score_too_high score_not_a_number score_nan two_columns
tag_not_a_number duplicate_tag blank_tag empty_file"""


@pytest.mark.parametrize("kind", KINDS.split())
def test_stopping_names_file_record_field_and_a_fix(source: Path, tmp_path: Path, kind: str) -> None:
    (row,) = [row for row in planted(source) if row["kind"] == kind]
    record = alone(source, row, tmp_path / "src")
    with pytest.raises(UserError) as caught:
        dispatch(["convert", "aiac", str(tmp_path / "src"), "--out", str(tmp_path / "out"), *OPTIONS])
    error = caught.value
    assert (error.file, error.record, error.field) == (str(tmp_path / "src" / row["file"]), record, row["field"])
    assert error.fix
    assert re.fullmatch(r".+\. Fix: .+", str(error))
    assert not list((tmp_path / "out").rglob("*.tmp"))
