"""A small corpus with topics behind titles, tags and frames, and recipes for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest

ROOT = Path(__file__).resolve().parents[2]
NUM_VIDEOS = 240


@dataclass(frozen=True)
class Tiny:
    """Folder with `videos`, `pairs.tsv`, `pretrain.yaml`, `finetune.yaml`."""

    folder: Path

    @property
    def pretrain(self) -> list[str]:
        """Arguments of a pretraining run; the output folder is still to be named."""
        return ["--config", str(self.folder / "pretrain.yaml")]

    @property
    def finetune(self) -> list[str]:
        """Arguments of a finetuning run; checkpoint and output folder are still to be named."""
        return ["--config", str(self.folder / "finetune.yaml")]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    topics = write_videos(folder / "videos")
    generator = np.random.default_rng(1)
    lines = ["id1\tid2\tscore"]
    for first, second in generator.integers(0, NUM_VIDEOS, (120, 2)):
        if first != second:
            same = topics[first] == topics[second]
            lines.append(f"v{first}\tv{second}\t{1.0 if same else 0.5 * (topics[first] % 2 == topics[second] % 2)}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [f"word{number}" for number in range(40)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    videos = str(folder / "videos")
    pretrain = {
        "data": {"stages": [{"data": [videos], "num_epochs": 4}], "num_tags": 20, "held_out_fraction": 0.1},
        "tokenizer": {"path": str(folder / "vocab.txt")},
        "model": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "embedding_dim": 8,
            "max_title_tokens": 6,
            "max_frames": 6,
        },
        "objectives": {"vtc": {"weight": 10.0}},
        "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 1e-3},
        "loop": {"micro_batch_size": 16, "log_every_steps": 3, "eval_every_steps": 12, "checkpoint_every_steps": 5},
        "probe": {"data": [videos], "pairs": str(folder / "pairs.tsv")},
    }
    finetune = {
        "data": {"videos": [videos], "pairs": str(folder / "pairs.tsv")},
        "num_epochs": 3,
        "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 1e-3},
        "loop": {"micro_batch_size": 8, "log_every_steps": 3, "eval_every_steps": 9, "checkpoint_every_steps": 4},
    }
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(pretrain), encoding="utf-8")
    (folder / "finetune.yaml").write_text(yaml.safe_dump(finetune), encoding="utf-8")
    return Tiny(folder)


def write_videos(folder: Path) -> list[int]:
    """Write the videos; some have no frames, some no title, some no tags."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(8, 12))
    topics = []
    folder.mkdir()
    with ShardWriter(folder / "data-00000.arrow", {"frames": 12}) as writer:
        for number in range(NUM_VIDEOS):
            topic = int(generator.integers(8))
            topics.append(topic)
            words = generator.integers(0, 5, generator.integers(0, 6))
            frames = centres[topic] + 0.5 * generator.normal(size=(int(generator.integers(0, 9)), 12))
            writer.write(
                {
                    "id": f"v{number}",
                    "title": " ".join(f"word{topic * 5 + word}" for word in words),
                    "asr": "",
                    "tags": [] if number % 10 == 0 else [f"t{topic}", f"m{topic % 2}"],
                    "category": topic,
                    "frames": frames.astype(np.float16),
                }
            )
    streams = {"frames": StreamInfo(dim=12, extractor=None)}
    write_manifest(folder, [writer.info], streams, has_tags=True, command="made for a test")
    return topics


def launch(arguments: list[str], *, ranks: int = 1) -> subprocess.Popen[str]:
    """Start a script of the repository in processes of its own."""
    command = [sys.executable, *arguments]
    if ranks > 1:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command = [*run, *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_script(arguments: list[str], *, ranks: int = 1) -> str:
    """Run a script to its end; its output."""
    process = launch(arguments, ranks=ranks)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the clock."""
    clock = {"seconds", "examples_per_second"}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


@pytest.fixture(scope="session")
def scripts() -> Any:
    """The helpers above, for test files (which do not import each other)."""

    class Scripts:
        launch = staticmethod(launch)
        run = staticmethod(run_script)
        metrics = staticmethod(metrics_of)

    return Scripts
