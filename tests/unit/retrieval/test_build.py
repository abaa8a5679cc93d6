from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.embeddings import read_embeddings, write_embeddings
from vidsim.retrieval import search
from vidsim.retrieval.build import main
from vidsim.retrieval.index import VectorIndex
from vidsim.retrieval.related import main as related

NUM = 80


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vectors = np.random.default_rng(0).normal(size=(NUM, 8)).astype(np.float32)
    ids = [f"v{number}" for number in range(NUM)]
    write_embeddings(tmp_path / "all", ids, vectors, {"model": "m"})
    write_embeddings(tmp_path / "first", ids[:50], vectors[:50], {"model": "m"})
    write_embeddings(tmp_path / "second", ids[50:], vectors[50:], {"model": "m"})
    write_embeddings(tmp_path / "other.parquet", ["z"], vectors[:1], {"model": "another"})
    write_embeddings(tmp_path / "narrow.parquet", ["z"], vectors[:1, :5])
    lines = ["id,category", *(f"v{number},{number % 4}" for number in range(NUM))]
    (tmp_path / "meta.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def found(folder: Path, name: str, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    capsys.readouterr()
    assert search.main([str(folder / name), "--query", "v3", "v60", "-k", "5", "--json", *options]) == 0
    answer: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return answer


def test_index_and_embeddings_find_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "all"), "--out", str(folder / "index")]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'index'}: 80 videos, 8 dimensions, exact, ")
    assert main([str(folder / "first"), str(folder / "second"), "--out", str(folder / "joined")]) == 0
    assert main([str(folder / "first"), "--out", str(folder / "grown")]) == 0
    assert main([str(folder / "second"), "--out", str(folder / "grown"), "--add"]) == 0
    (folder / "some.txt").write_text("v10\nv60\n")
    write_embeddings(folder / "some", ["v10", "v60"], read_embeddings(folder / "all").vectors[[10, 60]])
    assert main([str(folder / "all"), "--out", str(folder / "changed")]) == 0
    assert main(["--out", str(folder / "changed"), "--remove", str(folder / "some.txt")]) == 0
    assert len(VectorIndex.load(folder / "changed")) == NUM - 2
    assert main([str(folder / "some"), "--out", str(folder / "changed"), "--add"]) == 0
    assert (
        main([str(folder / "some"), "--out", str(folder / "changed"), "--add", "--remove", str(folder / "some.txt")])
        == 0
    )
    expected = found(folder, "all", capsys)
    for name in ("index", "joined", "grown", "changed"):
        assert found(folder, name, capsys) == expected


@pytest.mark.parametrize("kind", ["compact", "large"])
def test_refined_kinds(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kind", kind, "--refine", "--metadata", str(folder / "meta.csv")]
    assert main([str(folder / "all"), "--out", str(folder / "index"), *options]) == 0
    assert f"{kind} + vectors" in capsys.readouterr().out
    assert found(folder, "index", capsys) == found(folder, "all", capsys)
    answer = found(folder, "index", capsys, "--where", "category=1")
    assert [len(one["results"]) for one in answer] == [5, 5]  # type: ignore[arg-type]
    assert {int(hit["id"][1:]) % 4 for one in answer for hit in one["results"]} == {1}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no metadata column 'lang'"):
        found(folder, "index", capsys, "--where", "lang=en")
    with pytest.raises(UserError, match="1 ids are not among the 80"):
        search.main([str(folder / "index"), "--query", "nobody"])
    with pytest.raises(UserError, match="--where: needs an index with metadata"):
        found(folder, "all", capsys, "--where", "category=1")


def test_faults_are_named(folder: Path) -> None:
    index = ["--out", str(folder / "index")]
    with pytest.raises(UserError, match="is of another model than"):
        main([str(folder / "all"), str(folder / "other.parquet"), *index])
    with pytest.raises(UserError, match=r"is of width 5, .* of 8"):
        main([str(folder / "all"), str(folder / "narrow.parquet"), *index])
    with pytest.raises(UserError, match="30 ids are in more than one of the embeddings: v50, v51"):
        main([str(folder / "all"), str(folder / "second"), *index])
    with pytest.raises(UserError, match="is not an index folder"):
        main([str(folder / "all"), *index, "--add"])
    assert not (folder / "index").exists()
    main([str(folder / "first"), *index])
    with pytest.raises(UserError, match=r"there is an index already\. Fix: give --add, --remove or --overwrite"):
        main([str(folder / "all"), *index])
    with pytest.raises(UserError, match="--add: keeps the settings of the index"):
        main([str(folder / "second"), *index, "--add", "--kind", "large"])
    with pytest.raises(UserError, match="is of another model than"):
        main([str(folder / "other.parquet"), *index, "--add"])
    with pytest.raises(UserError, match=r"holds vectors of width 8, those of .*narrow.parquet have 5"):
        main([str(folder / "narrow.parquet"), *index, "--add"])
    with pytest.raises(UserError, match="50 ids are in the index already"):
        main([str(folder / "all"), *index, "--add"])
    with pytest.raises(UserError, match="is not an index and not an empty folder"):
        main([str(folder / "all"), "--out", str(folder / "all")])
    assert len(VectorIndex.load(folder / "index")) == 50
    main([str(folder / "all"), *index, "--overwrite", "--kind", "compact"])
    assert len(VectorIndex.load(folder / "index")) == NUM


def test_a_removal_that_goes_wrong_changes_nothing(folder: Path) -> None:
    index = ["--out", str(folder / "index")]
    main([str(folder / "first"), *index])
    before = {path.name: path.read_bytes() for path in (folder / "index").iterdir()}
    ids = folder / "ids.txt"
    remove = ["--remove", str(ids)]
    for text, arguments, message in [
        ("v1\nv60\n", remove, "1 ids are not among the 50 of the index: v60"),
        ("v1\nv1\n", remove, "1 ids occur more than once: v1"),
        ("v1\n", [str(folder / "narrow.parquet"), "--add", *remove], "holds vectors of width 8"),
        ("v1\n", [str(folder / "all"), "--add", *remove], "49 ids are in the index already: v0, v2"),
        ("v1\n", [str(folder / "second"), *remove], "--remove: embeddings are added with --add only"),
        ("v1\n", ["--kind", "large", *remove], "--remove: keeps the settings of the index"),
        ("v1\n", ["--overwrite", *remove], "--remove: keeps the settings of the index"),
        ("v1\n", ["--metadata", str(folder / "meta.csv"), *remove], "--metadata: goes with embeddings"),
        ("v1\n", ["--add"], "there are no embeddings"),
        ("v1\n", [], "there are no embeddings"),
    ]:
        ids.write_text(text)
        with pytest.raises(UserError, match=message):
            main([*arguments, *index])
    assert {path.name: path.read_bytes() for path in (folder / "index").iterdir()} == before


def test_vectors_whose_lengths_count_make_no_index(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "emb", ["a", "b"], np.eye(2, dtype=np.float32), {"similarity": "dot"})
    with pytest.raises(UserError, match="lengths of its vectors mean something"):
        main([str(tmp_path / "emb"), "--out", str(tmp_path / "index")])
    with pytest.raises(UserError, match="lengths of its vectors mean something"):
        search.main([str(tmp_path / "emb"), "--query", "a"])
    with pytest.raises(UserError, match="lengths of its vectors mean something"):
        related([str(tmp_path / "emb"), "--out", str(tmp_path / "related.parquet")])
    with pytest.raises(UserError, match="--num_candidates: must be at least 1, not 0"):
        main([str(tmp_path / "emb"), "--out", str(tmp_path / "index"), "--num_candidates", "0"])
    assert not (tmp_path / "index").exists()
