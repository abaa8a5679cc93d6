from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.embeddings import read_embeddings, write_embeddings
from vidsim.finetune import embed
from vidsim.launch.search_video import main


@pytest.fixture
def source(checkpoint: Path, small_data: Any, tmp_path: Path) -> Path:
    arguments = [str(checkpoint), str(small_data.folder / "videos"), "--out", str(tmp_path / "emb")]
    assert embed.main(arguments) == 0
    return tmp_path / "emb"


def new_videos(small_data: Any, folder: Path) -> list[str]:
    """Video 7 under another name, and one without a title, as a user would hand them over."""
    [row] = small_data.videos.read([7])
    frames = row["frames"]
    (folder / "features").mkdir()
    np.save(folder / "features" / "copy.npy", frames)
    np.save(folder / "features" / "mute.npy", frames[::-1])
    lines = [{"id": "copy", "title": row["title"], "asr": row["asr"]}, {"id": "mute"}]
    (folder / "new.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return [str(folder / "new.jsonl"), "--features", str(folder / "features")]


def test_a_copy_of_a_video_finds_it(
    source: Path, checkpoint: Path, small_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = new_videos(small_data, tmp_path)
    capsys.readouterr()
    assert main([str(source), *new, "--checkpoint", str(checkpoint), "-k", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["query"], second["query"]) == ("copy", "mute")
    assert first["results"][0] == {"rank": 1, "id": "7", "score": pytest.approx(1, abs=1e-5)}
    assert [len(one["results"]) for one in (first, second)] == [2, 2]
    (tmp_path / "features" / "mute.npy").unlink()
    with pytest.raises(UserError, match="--allow_missing_features"):
        main([str(source), *new, "--checkpoint", str(checkpoint)])
    run = [str(source), *new, "--checkpoint", str(checkpoint), "--allow_missing_features", "--json"]
    capsys.readouterr()
    assert main(run) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    new = [new[0], "--features", new[2], "--allow_missing_features"]
    data = ["--data", str(small_data.folder / "videos"), "-k", "1"]
    assert main([str(source), *new, "--checkpoint", str(checkpoint), *data]) == 0
    assert capsys.readouterr().out.startswith("copy\n   1  1.0000  7  ")


def test_columns_of_other_names_are_read(
    source: Path, checkpoint: Path, small_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = new_videos(small_data, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()]
    renamed = [{"number": line["id"], "name": line.get("title", "w9")} for line in lines]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, renamed)), encoding="utf-8")
    capsys.readouterr()
    words = ["--checkpoint", str(checkpoint), "-k", "1", "--json", "--id", "number", "--title", "name"]
    assert main([str(source), *new, *words]) == 0
    assert json.loads(capsys.readouterr().out)[0]["results"] == [
        {"rank": 1, "id": "7", "score": pytest.approx(1, abs=1e-5)}
    ]


def test_what_does_not_fit_is_said_before_anything_is_read(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    made = read_embeddings(source)
    run = ["not_there.jsonl", "--checkpoint", str(checkpoint)]
    with pytest.raises(UserError, match=r"emb: holds vectors of width 4, those of .* have 8\. Fix: embed with"):
        main([str(source), *run, "--vector", "hidden"])
    write_embeddings(tmp_path / "other", made.ids, made.vectors, {"model": "another"})
    with pytest.raises(UserError, match=r"other: is of another model than .*: cosines would mean nothing"):
        main([str(tmp_path / "other"), *run])
    with pytest.raises(UserError, match=r"reads frames, nothing of it is given\. Fix: give --features"):
        main([str(source), *run])
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "x.npy", np.zeros((1, 6), np.float32))
    with pytest.raises(UserError, match=r"not_there\.jsonl"):
        main([str(source), *run, "--features", str(tmp_path / "features")])
    with pytest.raises(UserError, match="-k: must be at least 1, not 0"):
        main([str(source), *run, "-k", "0"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="model: is not the encoder of a video model"):
        main([str(source), "not_there.jsonl", "--checkpoint", str(tmp_path / "model")])
