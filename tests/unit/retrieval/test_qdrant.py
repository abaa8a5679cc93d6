from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import QdrantClient

from vidsim.common.errors import UserError
from vidsim.data.embeddings import write_embeddings
from vidsim.retrieval import build, qdrant, search
from vidsim.retrieval.index import VectorIndex
from vidsim.retrieval.qdrant import create_index, open_index

ADDRESS = "http://localhost:6333/collections/mine"
NUM, DIM = 300, 12
IDS = [f"v{number}" for number in range(NUM)]
TABLE = pa.table(
    {
        "category": pa.array([number % 7 for number in range(NUM)], pa.int32()),
        "seconds": [number / 4 for number in range(NUM)],
        "lang": ["en", "zh", None] * (NUM // 3),
        "is_new": [number % 2 == 0 for number in range(NUM)],
    }
)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> QdrantClient:
    """The client's own local mode, in place of a server."""
    client = QdrantClient(":memory:")
    monkeypatch.setattr(qdrant, "_client", lambda url: client)
    return client


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM, DIM)).astype(np.float32)


def test_it_finds_what_a_vector_index_finds(client: QdrantClient, vectors: np.ndarray) -> None:
    reference = VectorIndex.build(IDS, vectors, metadata=TABLE)
    created = create_index(ADDRESS, DIM, TABLE.schema, model="m")
    assert len(created) == 0
    created.add(IDS, vectors, TABLE)
    index = open_index(ADDRESS)
    assert (len(index), index.dim, index.model) == (NUM, DIM, "m")
    np.testing.assert_allclose(index.vectors_by_id(["v7", "v2"]), reference.vectors_by_id(["v7", "v2"]), atol=1e-6)
    queries, without = vectors[:9] + 0.1, [[video, "unknown", "v100"] for video in IDS[:9]]
    for where in (
        [],
        ["category=3"],
        ["category!=3", "seconds<50"],
        ["seconds>=12.5", "seconds<=12.75"],
        ["seconds=12.5"],
        ["seconds!=12.5", "category>4"],
        ["lang=zh", "is_new=true"],
        ["lang!=zh"],  # nothing holds of a value that is missing
        ["is_new!=true", "lang=en"],
        ["lang=fr"],
    ):
        found = index.similar(queries, 12, where=where, without=without)
        expected = reference.similar(queries, 12, where=where, without=without)
        assert [[video for video, _ in one] for one in found] == [[video for video, _ in one] for one in expected]
        scores = [[[score for _, score in one] for one in lists] for lists in (found, expected)]
        for ours, theirs in zip(*scores, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_adding_replaces_and_removing_removes(client: QdrantClient, vectors: np.ndarray) -> None:
    index = create_index(ADDRESS, DIM)
    index.add(IDS, vectors)
    index.add(["v3", "w"], vectors[[5, 6]] * 2)
    assert len(index) == NUM + 1
    assert {video for video, _ in index.similar(vectors[5:6], 2)[0]} == {"v3", "v5"}
    index.remove(["v5", "w"])
    assert len(index) == NUM - 1
    assert index.similar(vectors[5:6], 1)[0] == [("v3", pytest.approx(1, abs=1e-5))]
    with pytest.raises(UserError, match="2 ids are not in the index: v5, x"):
        index.remove(["v1", "v5", "x"])
    assert len(index) == NUM - 1
    with pytest.raises(UserError, match="1 ids are not in the index: w"):
        index.vectors_by_id(["v1", "w"])


def test_commands(
    client: QdrantClient, vectors: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_embeddings(tmp_path / "emb", IDS, vectors, {"model": "m"})
    write_embeddings(tmp_path / "new", ["n1"], vectors[:1], {"model": "m"})
    write_embeddings(tmp_path / "other", ["n2"], vectors[:1], {"model": "another"})
    lines = ["id,category", *(f"{video},{number % 7}" for number, video in enumerate([*IDS, "n1"]))]
    (tmp_path / "meta.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "gone.txt").write_text("v0\nv7\n")
    metadata = ["--metadata", str(tmp_path / "meta.csv")]
    assert build.main([str(tmp_path / "emb"), "--out", ADDRESS, *metadata]) == 0
    assert capsys.readouterr().out == f"{ADDRESS}: 300 videos, 12 dimensions\n"
    assert build.main([str(tmp_path / "emb"), "--out", str(tmp_path / "index"), *metadata]) == 0
    answers: list[Any] = []
    for source in (ADDRESS, str(tmp_path / "index")):
        assert build.main([str(tmp_path / "new"), "--out", source, "--add", *metadata]) == 0
        assert build.main(["--out", source, "--remove", str(tmp_path / "gone.txt")]) == 0
        capsys.readouterr()
        assert search.main([source, "--query", "v14", "n1", "-k", "3", "--where", "category<2", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*answers, strict=True):
        assert one["query"] == other["query"]
        assert [hit["id"] for hit in one["results"]] == [hit["id"] for hit in other["results"]]
    with pytest.raises(UserError, match=r"collections/mine: there is an index already\. Fix: give --add"):
        build.main([str(tmp_path / "emb"), "--out", ADDRESS])
    with pytest.raises(UserError, match="collections/mine: is of another model"):
        build.main([str(tmp_path / "other"), "--out", ADDRESS, "--add", *metadata])
    with pytest.raises(UserError, match="--out: is a matter of the server"):
        build.main([str(tmp_path / "emb"), "--out", ADDRESS, "--kind", "large"])
    build.main([str(tmp_path / "new"), "--out", ADDRESS, "--overwrite"])
    assert len(open_index(ADDRESS)) == 1


def test_faults_are_named(client: QdrantClient, vectors: np.ndarray) -> None:
    index = create_index(ADDRESS, DIM, TABLE.schema)
    with pytest.raises(UserError, match="mine: there is an index already"):
        create_index(ADDRESS, DIM)
    with pytest.raises(UserError, match="other: there is no such collection"):
        open_index("http://localhost:6333/collections/other")
    client.create_collection("foreign", vectors_config=client.get_collection("mine").config.params.vectors)
    with pytest.raises(UserError, match="foreign: was not made by this vidsim"):
        open_index("http://localhost:6333/collections/foreign")
    with pytest.raises(UserError, match=r"field 'day': is date32.day.: Qdrant takes numbers, text, true or false"):
        create_index(ADDRESS, DIM, pa.schema([("day", pa.date32())]))
    with pytest.raises(UserError, match=r"vectors are \[1, 5\], not \[1, 12\]"):
        index.add(["a"], np.ones((1, 5)), TABLE[:1])
    with pytest.raises(UserError, match=r"0 rows of metadata .* Fix: its columns are: category, seconds"):
        index.add(["a"], vectors[:1])
    with pytest.raises(UserError, match="1 ids occur more than once: a"):
        index.add(["a", "a"], vectors[:2], TABLE[:2])
    with pytest.raises(UserError, match="1 vectors are zero or not finite: a"):
        index.add(["a"], 0 * vectors[:1], TABLE[:1])
    assert len(index) == 0
    with pytest.raises(UserError, match="queries have width 5, the index 12"):
        index.similar(np.ones((1, 5)), 1)
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        index.similar(vectors[:1], 0)
    with pytest.raises(UserError, match="--where: Qdrant orders numbers only, 'lang' is string"):
        index.similar(vectors[:1], 1, where=["lang<en"])
    with pytest.raises(UserError, match="there is no metadata column 'm'"):
        index.similar(vectors[:1], 1, where=["m=1"])


def test_a_server_that_does_not_answer_is_named() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))  # nobody listens
        address = f"http://localhost:{free.getsockname()[1]}/collections/mine"
        with pytest.raises(UserError, match=r"collections/mine: the server failed \(.*refused.*\)"):
            open_index(address)


def test_without_the_client_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['qdrant_client'] = None\n"
        "from vidsim.common.errors import UserError\n"
        "from vidsim.retrieval.search import main\n"
        f"try:\n    main([{ADDRESS!r}, '--query', 'a'])\n"
        "except UserError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.startswith("a Qdrant collection needs qdrant-client, which cannot be imported")
    assert "Fix: pip install 'vidsim[qdrant]'" in run.stdout
