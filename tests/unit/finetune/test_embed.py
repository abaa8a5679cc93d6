from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.data import schema
from vidsim.data.arrow import open_videos
from vidsim.data.collators import encode_rows
from vidsim.data.embeddings import Embeddings, read_embeddings
from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.finetune import embed
from vidsim.finetune.embed import SortedWindows, batch_vectors, estimated_lengths, prepare_for_inference
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


@pytest.mark.parametrize("batch_size", ["4", "10", "64"])
def test_a_killed_run_goes_on_to_the_same_bits(
    checkpoint: Path, small_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: str
) -> None:
    monkeypatch.setattr(embed, "WINDOW", 10)
    options = ["--batch_size", batch_size]
    straight = command(checkpoint, small_data, tmp_path / "straight", *options)
    compute, seen = embed.batch_vectors, []

    def killed(encoder: Any, batch: Any, *rest: Any) -> torch.Tensor:
        seen.extend(batch[schema.ROW_IDS])
        if len(seen) > 10:
            raise KeyboardInterrupt
        return compute(encoder, batch, *rest)

    monkeypatch.setattr(embed, "batch_vectors", killed)
    with pytest.raises(KeyboardInterrupt):
        command(checkpoint, small_data, tmp_path / "killed", *options)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["part-00000.parquet"]
    with pytest.raises(UserError, match="is not complete"):
        read_embeddings(tmp_path / "killed")
    monkeypatch.setattr(embed, "batch_vectors", compute)
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


def test_windows_are_sorted_and_dealt_to_the_ranks() -> None:
    rows = np.array([9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 10])
    text = np.array([0, 5, 3, 9, 3, 8, 1, 1, 7, 2, 6])
    vectors = np.array([4, 1, 3, 2, 9, 5, 0, 6, 7, 8, 1])
    lengths = np.stack([text, vectors], axis=1)
    windows = [SortedWindows(rows, lengths, batch_size=2, window=6, rank=r, world_size=2) for r in range(2)]
    # The first window holds rows 9 1 2 3 4 5 with texts of 2 5 3 9 3 8 tokens: two bands, rows 3 5 1 and rows 2 4 9,
    # which have 2 5 1 and 3 9 8 vectors. The second: rows 6 7 8 0 10, 1 1 7 0 6 tokens; bands 8 10 6 and 7 0.
    assert rows[windows[0].order(0)].tolist() == [5, 3, 1, 4, 9, 2]
    assert rows[windows[0].order(6)].tolist() == [8, 10, 6, 7, 0]
    batches = [[[row for _, row in keys] for keys in each] for each in windows]
    assert batches == [[[5, 3], [9, 2], [8, 10], [0]], [[1, 4], [6, 7]]]
    assert [len(each) for each in windows] == [4, 2]
    resumed = SortedWindows(rows, lengths, batch_size=2, window=6, start=6)
    assert [[row for _, row in keys] for keys in resumed] == [[8, 10], [6, 7], [0]]
    assert len(SortedWindows(rows, lengths, batch_size=2, window=6, start=11)) == 0


def test_a_batch_holds_little_padding() -> None:
    generator = np.random.default_rng(0)
    lengths = np.stack([generator.integers(1, 34, 4096), generator.integers(1, 33, 4096)], axis=1)
    sampler = SortedWindows(np.arange(4096), lengths, batch_size=16, window=4096)
    padded = sum(lengths[[row for _, row in keys]].max(axis=0).sum() * len(keys) for keys in sampler)
    assert padded < 1.12 * lengths.sum()
    unsorted = sum(lengths[start : start + 16].max(axis=0).sum() * 16 for start in range(0, 4096, 16))
    assert unsorted > 1.8 * lengths.sum()


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "window", "world_size"), [(23, 3, 7, 3), (5, 9, 9, 4), (40, 1, 8, 5)]
)
def test_every_row_has_one_rank(num_rows: int, batch_size: int, window: int, world_size: int) -> None:
    generator = np.random.default_rng(0)
    rows, lengths = generator.permutation(num_rows), generator.integers(0, 9, (num_rows, 2))
    sizes = {"batch_size": batch_size, "window": window}
    alone = [tuple(keys) for keys in SortedWindows(rows, lengths, **sizes)]
    shared = []
    for rank in range(world_size):
        sampler = SortedWindows(rows, lengths, **sizes, rank=rank, world_size=world_size)
        found = [tuple(keys) for keys in sampler]
        assert len(found) == len(sampler) == sum(len(sampler.own_parts(start)) for start in sampler.starts)
        shared += found
    assert sorted(shared) == sorted(alone)
    assert sorted(row for keys in alone for _, row in keys) == list(range(num_rows))


def test_lengths_are_those_of_the_batches(checkpoint: Path, small_data: Any) -> None:
    _, processor = load_encoder(checkpoint)
    lengths = estimated_lengths(small_data.videos, processor)
    for video, length in zip(small_data.videos, lengths.tolist(), strict=True):
        words = video["title"].split()
        assert length == [min(len(words), 4), min(len(video["frames"]), 4)]  # "w1 w2" has 3 bytes a word, less one
    processor.use_text = False
    assert estimated_lengths(small_data.videos, processor).max(axis=0).tolist() == [0, 4]
    processor.use_frames = False
    assert estimated_lengths(small_data.videos, processor).max() == 0


def test_bf16_computes_the_bits_of_autocast(checkpoint: Path, small_data: Any) -> None:
    plain, processor = load_encoder(checkpoint)
    rounded = prepare_for_inference(load_encoder(checkpoint)[0], torch.device("cpu"), "bf16")
    assert {p.dtype for p in rounded.text.parameters()} == {torch.float32, torch.bfloat16}
    batch = encode_rows(list(small_data.videos), processor)
    vectors = [batch_vectors(each.eval(), batch, "bf16", "hidden") for each in (rounded, plain)]
    assert torch.equal(*vectors)
    exact = batch_vectors(plain, batch, "fp32", "hidden")
    assert 1e-5 < (vectors[0] - exact).abs().max() < 0.02


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_two_processes_write_what_one_does(
    checkpoint: Path,
    small_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: str,
    on_two_processes: Any,
) -> None:
    monkeypatch.setattr(embed, "WINDOW", 10)
    straight = command(checkpoint, small_data, tmp_path / "one", "--batch_size", "4")
    script = tmp_path / "script.py"
    script.write_text(
        "from vidsim.common.entry import leave, run_entry\nfrom vidsim.finetune import embed\n"
        "embed.WINDOW = 10\nleave(run_entry(embed.main))\n",
        encoding="utf-8",
    )
    folder = tmp_path / "two"
    folder.mkdir()
    shutil.copy(tmp_path / "one/part-00000.parquet", folder)  # both go on after the first shard
    arguments = [str(checkpoint), str(small_data.folder / "videos"), "--out", str(folder), "--batch_size", "4"]
    assert on_two_processes(script, *arguments, "--num_workers", num_workers) == f"{folder}: 24 embeddings\n"
    made = read_embeddings(folder)
    assert made.ids == straight.ids
    np.testing.assert_allclose(made.vectors, straight.vectors, rtol=0, atol=1e-6)
    assert made.metadata == straight.metadata


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
    assert not (tmp_path / "out").exists()


def test_the_index_says_what_was_embedded(checkpoint: Path, small_data: Any, tmp_path: Path) -> None:
    command(checkpoint, small_data, tmp_path / "out")
    index = json.loads((tmp_path / "out/embeddings.json").read_text(encoding="utf-8"))
    assert (index["num_rows"], index["dim"], index["complete"]) == (24, 4, True)
    assert len(index["metadata"]["model"]) == 64
