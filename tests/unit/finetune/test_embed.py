from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.collators import encode_rows
from vidsim.data.embeddings import Embeddings, EmbeddingWriter, read_embeddings
from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.finetune import embed
from vidsim.modeling.build import load_encoder


def command(checkpoint: Path, small_data: Any, out: Path, *options: str) -> Embeddings:
    arguments = [str(checkpoint), str(small_data.folder / "videos"), "--out", str(out), *options]
    assert embed.main(arguments) == 0
    return read_embeddings(out)


def one_by_one(checkpoint: Path, small_data: Any, vector: str) -> np.ndarray:
    encoder, processor = load_encoder(checkpoint)
    vectors = []
    for video in small_data.videos:
        with torch.no_grad():
            output = encoder.eval()(**encoder.inputs_of(encode_rows([video], processor)))
        hidden = output.last_hidden_state[0][output.mask[0]].mean(0)
        vectors.append(output.embedding[0] if vector == "embedding" else hidden / hidden.norm())
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize(("vector", "width"), [("embedding", 4), ("hidden", 8)])
def test_each_vector_is_that_of_its_video(
    checkpoint: Path, small_data: Any, tmp_path: Path, vector: str, width: int
) -> None:
    made = command(checkpoint, small_data, tmp_path / "out", "--batch_size", "5", "--vector", vector)
    assert made.ids == [str(number) for number in range(24)]
    assert made.vectors.shape == (24, width)
    np.testing.assert_allclose(made.vectors, one_by_one(checkpoint, small_data, vector), atol=1e-6)
    assert np.ptp(made.vectors, axis=0).min() > 1e-3  # or the comparison would say nothing
    assert made.metadata["vector"] == vector
    assert made.metadata["normalized"] is True
    assert made.metadata["data"] == small_data.videos.fingerprint()


def test_only_the_ids_asked_for_in_their_order(checkpoint: Path, small_data: Any, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("7\n20\n0\n", encoding="utf-8")
    made = command(checkpoint, small_data, tmp_path / "out", "--ids", str(tmp_path / "ids.txt"))
    assert made.ids == ["7", "20", "0"]
    np.testing.assert_allclose(made.vectors, one_by_one(checkpoint, small_data, "embedding")[[7, 20, 0]], atol=1e-6)
    (tmp_path / "ids.txt").write_text("7\nnobody\n", encoding="utf-8")
    with pytest.raises(UserError, match="first nobody"):
        command(checkpoint, small_data, tmp_path / "other", "--ids", str(tmp_path / "ids.txt"))


class SmallShards(EmbeddingWriter):
    """Shards of ten rows; killed after one where it is told so."""

    killed = False

    def __init__(self, folder: Any, dim: int, metadata: Any, **settings: Any) -> None:
        super().__init__(folder, dim, metadata, 10, **settings)

    def write(self, ids: Any, vectors: Any) -> None:
        super().write(ids, vectors)
        if self.killed and self.num_done >= 12:
            raise KeyboardInterrupt


@pytest.mark.parametrize("batch_size", ["4", "10", "64"])
def test_a_killed_run_goes_on_to_the_same_bits(
    checkpoint: Path, small_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: str
) -> None:
    """Batches of 4 do not meet the shard's end at 10: the run goes on in the middle of one."""
    monkeypatch.setattr(embed, "EmbeddingWriter", SmallShards)
    options = ["--batch_size", batch_size]
    straight = command(checkpoint, small_data, tmp_path / "straight", *options)
    monkeypatch.setattr(SmallShards, "killed", True)
    with pytest.raises(KeyboardInterrupt):
        command(checkpoint, small_data, tmp_path / "killed", *options)
    shards = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert shards[0] == "part-00000.parquet"
    with pytest.raises(UserError, match="is not complete"):
        read_embeddings(tmp_path / "killed")
    monkeypatch.setattr(SmallShards, "killed", False)
    resumed = command(checkpoint, small_data, tmp_path / "killed", *options)
    assert resumed.ids == straight.ids
    assert resumed.vectors.tobytes() == straight.vectors.tobytes()
    # A third call has nothing to do; shards of another kind of vector are not mixed in.
    assert command(checkpoint, small_data, tmp_path / "killed", *options).ids == straight.ids
    for other in (["--precision", "bf16"], ["--vector", "hidden"]):
        with pytest.raises(UserError, match="another run"):
            command(checkpoint, small_data, tmp_path / "killed", *other)
    overwritten = command(checkpoint, small_data, tmp_path / "killed", "--vector", "hidden", "--overwrite")
    assert overwritten.dim == 8


def other_data(folder: Path, streams: dict[str, int]) -> Path:
    with ShardWriter(folder / "data-00000.arrow", streams) as writer:
        vectors = {name: np.ones((2, dim), np.float16) for name, dim in streams.items()}
        writer.write({"id": "x", "title": "w1", "tags": [], **vectors})
    infos = {name: StreamInfo(dim=dim, extractor=None) for name, dim in streams.items()}
    write_manifest(folder, [writer.info], infos, has_tags=False, command="test")
    return folder


def test_frames_of_another_width_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = other_data(tmp_path / "data", {"frames": 5})
    with pytest.raises(UserError, match=r"field 'frames': the data set has vectors of width 5.* of width 6"):
        embed.main([str(checkpoint), str(data), "--out", str(tmp_path / "out")])


def test_a_stream_that_the_checkpoint_does_not_read_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    plain = other_data(tmp_path / "plain", {"frames": 6})
    rich = other_data(tmp_path / "rich", {"frames": 6, "audio": 3})
    made = []
    for data in (plain, rich):
        assert embed.main([str(checkpoint), str(data), "--out", str(tmp_path / f"{data.name}.emb")]) == 0
        made.append(read_embeddings(tmp_path / f"{data.name}.emb").vectors)
    assert made[0].tobytes() == made[1].tobytes()
    assert open_videos(rich).streams == {"frames": 6, "audio": 3}


def test_what_cannot_work_is_named(
    checkpoint: Path, small_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("--batch_size", "--num_workers"):
        with pytest.raises(UserError, match=rf"{option}'?: -1 is below"):
            command(checkpoint, small_data, tmp_path / "out", option, "-1")
    with pytest.raises(UserError, match="holds no checkpoint"):
        command(tmp_path, small_data, tmp_path / "out")
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"copy: holds no model\.safetensors"):
        command(copy, small_data, tmp_path / "out")
    several: Any = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(embed, "make_accelerator", lambda precision: several)
    with pytest.raises(UserError, match=r"several processes at once.*Fix: start one process"):
        command(checkpoint, small_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_index_says_what_was_embedded(checkpoint: Path, small_data: Any, tmp_path: Path) -> None:
    command(checkpoint, small_data, tmp_path / "out")
    index = json.loads((tmp_path / "out/embeddings.json").read_text(encoding="utf-8"))
    assert (index["num_rows"], index["dim"], index["complete"]) == (24, 4, True)
    assert len(index["metadata"]["model"]) == 64
