from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.embeddings import write_embeddings
from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.retrieval.build import main as make_index
from vidsim.retrieval.search import main


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_command_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_embeddings(tmp_path / "emb", list("abcd"), angles(0, 60, 10, 180))
    main([str(tmp_path / "emb"), "--query", "a", "d", "-k", "2", "--json"])
    [first, second] = [one["results"] for one in json.loads(capsys.readouterr().out)]
    assert [hit["id"] for hit in first] == ["c", "b"]
    assert [hit["score"] for hit in first] == pytest.approx([np.cos(np.deg2rad(10)), 0.5], abs=1e-6)
    assert [hit["id"] for hit in second] == ["b", "c"]
    assert [hit["score"] for hit in second] == pytest.approx([-0.5, -np.cos(np.deg2rad(10))], abs=1e-6)


@pytest.mark.parametrize("kind", [None, "exact", "compact", "large"])
def test_new_videos_are_looked_for_by_their_vectors(
    kind: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_embeddings(tmp_path / "emb", list("abcd"), angles(0, 60, 10, 180), {"model": "m"})
    write_embeddings(tmp_path / "new", ["new", "a"], angles(59, 1), {"model": "m"})
    np.save(tmp_path / "one.npy", angles(59)[0] * 7)
    np.save(tmp_path / "two.npy", angles(59, 1).astype(np.float64))
    source = str(tmp_path / "emb")
    if kind is not None:
        source = str(tmp_path / "index")
        make_index([str(tmp_path / "emb"), "--out", source, "--kind", kind])
        capsys.readouterr()

    def found(*options: str) -> list[tuple[str, list[str]]]:
        assert main([source, "-k", "2", "--json", *options]) == 0
        answer = json.loads(capsys.readouterr().out)
        return [(one["query"], [hit["id"] for hit in one["results"]]) for one in answer]

    # Who is there already under the same id is not its own neighbour.
    assert found("--queries", str(tmp_path / "new")) == [("new", ["b", "c"]), ("a", ["c", "b"])]
    assert found("--vector", str(tmp_path / "one.npy")) == [("query 0", ["b", "c"])]
    assert found("--vector", str(tmp_path / "two.npy")) == [("query 0", ["b", "c"]), ("query 1", ["a", "c"])]
    np.save(tmp_path / "wide.npy", np.ones(3, np.float32))
    write_embeddings(tmp_path / "other", ["new"], angles(59), {"model": "another"})
    np.save(tmp_path / "whole.npy", np.ones(2, np.int64))
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04N.")
    for option, name, message in [
        ("--vector", "wide.npy", r"holds vectors of width 2, those of .*wide\.npy have 3\. Fix: embed with the model"),
        ("--vector", "whole.npy", r"whole\.npy: holds int64 \[1, 2\], not float"),
        ("--vector", "pickle.npy", r"pickle\.npy: is no readable \.npy file"),
        ("--queries", "other", "is of another model than .*other: cosines would mean nothing"),
    ]:
        with pytest.raises(UserError, match=message):
            found(option, str(tmp_path / name))
    with pytest.raises(UserError, match="--vector: not allowed with argument --query"):
        found("--query", "a", "--vector", "x.npy")
    with pytest.raises(UserError, match="one of the arguments --query --queries --vector is required"):
        found()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_embeddings(tmp_path / "emb", list("abcd"), angles(0, 60, 10, 180))
    assert main([str(tmp_path / "emb"), "--query", "a", "-k", "2"]) == 0
    assert capsys.readouterr().out == "a\n   1  0.9848  c\n   2  0.5000  b\n"
    assert main([str(tmp_path / "emb"), "--query", "a", "d", "-k", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [entry["query"] for entry in answer] == ["a", "d"]
    assert answer[0]["results"] == [{"rank": 1, "id": "c", "score": pytest.approx(0.9848, abs=1e-4)}]
    with pytest.raises(UserError, match="no video has the id 'q'"):
        main([str(tmp_path / "emb"), "--query", "q"])


def test_titles_are_printed_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path / "data" / "data-00000.arrow", {"frames": 2}) as writer:
        for video, title in zip("dcba", ["far", "\x1b[31mred\nline", "标题 二", "query"], strict=True):
            row = {"id": video, "title": title, "asr": "", "tags": [], "category": None}
            writer.write({**row, "frames": np.zeros((1, 2), np.float16)})
    write_manifest(tmp_path / "data", [writer.info], {"frames": StreamInfo(dim=2, extractor=None)}, has_tags=False)
    write_embeddings(tmp_path / "emb", list("abcd"), angles(0, 60, 10, 180))
    arguments = [str(tmp_path / "emb"), "--query", "a", "-k", "2", "--data", str(tmp_path / "data")]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "a  query\n   1  0.9848  c  [31mred line\n   2  0.5000  b  标题 二\n"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["results"][1]["title"] == "标题 二"
    write_embeddings(tmp_path / "emb", list("abcq"), angles(0, 60, 10, 180))
    with pytest.raises(UserError, match="q"):
        main([*arguments[:4], "9", *arguments[5:]])
