"""A handful of videos with their tokenizer and pairs, for what stands above data and model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidsim.data.arrow import Videos, open_videos
from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.data.tokenization import load_tokenizer
from vidsim.modeling.build import ModelConfig, build_encoder, build_processor, save_encoder

FRAME_DIM = 6
NUM_VIDEOS = 24


@dataclass(frozen=True)
class SmallData:
    """24 videos `0` … `23`: every fifth without frames, every seventh without a title, every third without tags."""

    folder: Path

    @property
    def videos(self) -> Videos:
        """The videos, with frames of width 6."""
        return open_videos(self.folder / "videos")

    @property
    def vocabulary(self) -> Path:
        """`vocab.txt`: special tokens and ten words."""
        return self.folder / "vocab.txt"

    @property
    def pairs(self) -> Path:
        """All pairs (i, i + 1) and (i, i + 3) modulo 12 of videos 0 … 11, and the pairs (12, 13), (14, 15), … alone."""
        return self.folder / "pairs.tsv"

    def tokenizer(self) -> Any:
        """The tokenizer of the vocabulary."""
        return load_tokenizer(self.vocabulary)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    folder = tmp_path_factory.mktemp("small")
    generator = np.random.default_rng(0)
    with ShardWriter(folder / "videos" / "data-00000.arrow", {"frames": FRAME_DIM}) as writer:
        for number in range(NUM_VIDEOS):
            num_frames = 0 if number % 5 == 4 else int(generator.integers(1, 6))
            words = [] if number % 7 == 3 else [f"w{word}" for word in generator.integers(0, 10, 4)]
            frames = generator.normal(size=(num_frames, FRAME_DIM)).astype(np.float16)
            tags = [] if number % 3 == 2 else [f"t{number % 4}", "all"]
            writer.write({"id": str(number), "title": " ".join(words), "asr": "", "tags": tags, "frames": frames})
    streams = {"frames": StreamInfo(dim=FRAME_DIM, extractor=None)}
    write_manifest(folder / "videos", [writer.info], streams, has_tags=True, command="test")
    words = [f"w{number}" for number in range(10)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    pairs = [(i, (i + step) % 12) for i in range(12) for step in (1, 3)]
    pairs += [(i, i + 1) for i in range(12, NUM_VIDEOS, 2)]
    lines = [f"{first}\t{second}\t{generator.integers(0, 11) / 10}" for first, second in pairs]
    (folder / "pairs.tsv").write_text("id1\tid2\tscore\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return SmallData(folder)


@pytest.fixture(scope="session")
def checkpoint(small_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained encoder for `small_data`; embeddings of width 4, hidden states of width 8."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes: dict[str, Any] = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "embedding_dim": 4}
    config = ModelConfig(**sizes, max_title_tokens=4, max_frames=4, dropout=0.2)
    tokenizer, streams = small_data.tokenizer(), small_data.videos.streams
    torch.manual_seed(0)
    encoder, _ = build_encoder(config, tokenizer, streams)
    with torch.no_grad():  # untrained embeddings are all alike: spread them
        encoder.embedding_head.projection.weight.mul_(50)
        encoder.streams["frames"].projection.weight.mul_(30)
    save_encoder(encoder, build_processor(config, tokenizer, streams), folder)
    return folder


@pytest.fixture
def on_two_processes() -> Callable[..., str]:
    """Run a script on two CPU processes; returns what it printed."""

    def run(script: str | Path, *words: str) -> str:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        found = subprocess.run(
            [*launch, str(script), *words],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    return run
