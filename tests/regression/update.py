"""The curve of a small run: `python tests/regression/update.py` records it anew in `curve.json`.

Do so when a change is meant to alter training, and say in the commit why the numbers move.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
import yaml

from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.finetune.run import main as finetune
from vidsim.pretrain.run import main as pretrain

CURVE = Path(__file__).with_name("curve.json")
TOLERANCE = 1e-4
CLOCK = ("step", "seconds", "examples_per_second")
Curve = dict[str, list[float]]

# No dropout: its random numbers differ between builds of torch, those of the initial weights do not.
MODEL: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "embedding_dim": 8,
    "max_title_tokens": 6,
    "max_frames": 6,
    "dropout": 0.0,
}
LOOP: dict[str, Any] = {"micro_batch_size": 8, "gradient_accumulation_steps": 2, "log_every_steps": 1}
RATES = {"learning_rate": 1e-3, "head_learning_rate": 2e-3}


def record(folder: Path) -> dict[str, Curve]:
    """Train in a folder: 12 steps of pretraining with VTC, MLM and MFM, then 6 of finetuning, in float32.

    Returns:
        Metric -> its values in the order of the steps, for each of the two runs.
    """
    write_data(folder)
    stage = {"data": [str(folder / "videos")], "num_epochs": 4}
    recipes: dict[str, dict[str, Any]] = {
        "pretrain": {
            "data": {"stages": [stage], "num_tags": 12, "held_out_fraction": 0.2},
            "tokenizer": {"path": str(folder / "vocab.txt")},
            "model": MODEL,
            "objectives": {"vtc": {"weight": 10.0}, "mlm": {"weight": 0.3}, "mfm": {"weight": 0.1}},
            "loop": {**LOOP, "max_steps": 12, "eval_every_steps": 6},
        },
        "finetune": {
            "init_from": str(folder / "pretrain"),
            "data": {"videos": [str(folder / "videos")], "pairs": str(folder / "pairs.tsv")},
            "loop": {**LOOP, "max_steps": 6, "eval_every_steps": 3},
        },
    }
    for name, main in (("pretrain", pretrain), ("finetune", finetune)):
        recipe = {**recipes[name], "output_dir": str(folder / name), "optimizer": RATES}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        assert main(["--config", str(folder / f"{name}.yaml")]) == 0
    return {name: read_curve(folder / name / "metrics.jsonl") for name in recipes}


def write_data(folder: Path) -> None:
    """60 videos of 5 topics, some without title, frames or tags; 60 pairs."""
    generator = np.random.default_rng(7)
    centres = generator.normal(size=(5, 10))
    topics = generator.integers(0, 5, 60).tolist()
    with ShardWriter(folder / "videos" / "data-00000.arrow", {"frames": 10}) as writer:
        for number, topic in enumerate(topics):
            words = generator.integers(0, 4, number % 6)
            frames = centres[topic] + 0.5 * generator.normal(size=(number % 7, 10))
            writer.write(
                {
                    "id": f"v{number}",
                    "title": " ".join(f"w{topic * 4 + word}" for word in words),
                    "tags": [] if number % 9 == 0 else [f"topic{topic}", f"odd{topic % 2}"],
                    "frames": frames.astype(np.float16),
                }
            )
    streams = {"frames": StreamInfo(dim=10, extractor=None)}
    write_manifest(folder / "videos", [writer.info], streams, has_tags=True, command="regression test")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(20))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    pairs = [(number, (number * 7 + 11) % 60) for number in range(60)]
    lines = [f"v{a}\tv{b}\t{(topics[a] == topics[b]) * 0.5 + (a + b) % 5 / 10}" for a, b in pairs if a != b]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_curve(path: Path) -> Curve:
    """The metrics of a run. A rank correlation jumps where two cosines change places, so it is left out."""
    curve: Curve = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        for name, value in json.loads(line).items():
            if name not in CLOCK and "spearman" not in name:
                curve.setdefault(name, []).append(float(f"{value:.7g}"))
    return curve


def environment() -> dict[str, str]:
    """Where the curve was recorded: what to look at first when it fails elsewhere."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "device": "cpu",
        "dtype": "float32",
    }


def main() -> int:
    """Record and write."""
    os.environ["ACCELERATE_USE_CPU"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        curves = record(Path(folder))
    content = {"relative_tolerance": TOLERANCE, "environment": environment(), **curves}
    CURVE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {CURVE.name}: {', '.join(f'{name} {len(curve)} metrics' for name, curve in curves.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
