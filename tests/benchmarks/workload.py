"""What is benchmarked: videos with the competition's lengths, a vocabulary of its size, and our trainer.

Titles: 18.7 characters (= tokens) on average, spread 6.6, at most 33 are read; frames: 17 a video, spread 6.5, 1 to
32; tags: 4.76, at most 29 (published statistics; the spreads are fitted to their quantiles). Weights and features are
random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from vidsim.data import schema
from vidsim.data.arrow import Videos, open_videos
from vidsim.data.collators import PretrainCollator, VideoRows, to_device
from vidsim.data.manifest import StreamInfo
from vidsim.data.masking import MaskingConfig
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.data.tags import TagVocabulary
from vidsim.data.tokenization import SPECIAL_TOKENS, load_tokenizer
from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.balance import BalanceConfig, LossBalancer
from vidsim.engine.loop import Hooks, Trainer
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig, make_optimizer, parameter_groups
from vidsim.modeling.build import ModelConfig, build_encoder, build_processor
from vidsim.modeling.parameters import HEADS, layer_numbers
from vidsim.modeling.processor import VideoTextProcessor
from vidsim.pretrain.config import ObjectivesConfig
from vidsim.pretrain.module import PretrainModule

VOCAB_SIZE = 21128
NUM_TAGS = 10_000
MAX_TITLE, MAX_FRAMES = 33, 32
_CHARACTERS = [chr(code) for code in range(0x4E00, 0x9FA6)]  # one token each
_SHARD_ROWS = 50_000


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Model, batch and lengths.

    Attributes:
        num_layers: Of the encoder.
        hidden_size: Of the encoder; a head has 64.
        frame_dim: Width of a frame.
        batch_size: Videos a step.
        lengths: `competition`, `full` (33 tokens, 32 frames each) or `TOKENS,FRAMES` for each.
    """

    num_layers: int = 12
    hidden_size: int = 768
    frame_dim: int = 1536
    batch_size: int = 32
    lengths: str = "competition"

    def model(self, *, dropout: float = 0.1) -> ModelConfig:
        """The recipe's model."""
        return ModelConfig(
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=max(1, self.hidden_size // 64),
            dropout=dropout,
        )


def draw_lengths(rng: np.random.Generator, count: int, lengths: str) -> tuple[np.ndarray, np.ndarray]:
    """Characters of the title and frames of `count` videos, int64 each."""
    if lengths == "competition":
        titles = rng.normal(18.7, 6.6, count).round().clip(1, 60).astype(np.int64)
        return titles, rng.normal(17, 6.5, count).round().clip(1, MAX_FRAMES).astype(np.int64)
    title, frames = (MAX_TITLE, MAX_FRAMES) if lengths == "full" else map(int, lengths.split(","))
    return np.full(count, title), np.full(count, frames)


def draw_rows(num_videos: int, frame_dim: int, lengths: str, seed: int = 0) -> list[dict[str, Any]]:
    """Video rows; frames are slices of one random block, so that a large set is made quickly."""
    rng = np.random.default_rng(seed)
    block = rng.random((4096, frame_dim), dtype=np.float32).astype(np.float16)
    titles, frames = draw_lengths(rng, num_videos, lengths)
    tags = rng.negative_binomial(7, 7 / (7 + 4.76), num_videos).clip(1, 29)
    starts = rng.integers(len(block) - MAX_FRAMES, size=num_videos)
    rows = []
    for number in range(num_videos):
        characters = rng.integers(len(_CHARACTERS), size=titles[number]).tolist()
        rows.append(
            {
                schema.ID: str(number),
                schema.TITLE: "".join(_CHARACTERS[character] for character in characters),
                schema.TAGS: [str(tag) for tag in np.unique(rng.integers(NUM_TAGS, size=tags[number]))],
                schema.FRAMES: block[starts[number] : starts[number] + frames[number]],
            }
        )
    return rows


def write_videos(folder: Path, num_videos: int, frame_dim: int, lengths: str) -> Videos:
    """Write a data set, in shards of 50,000 videos, and open it."""
    infos = []
    for number, start in enumerate(range(0, num_videos, _SHARD_ROWS)):
        with ShardWriter(folder / f"data-{number:05d}.arrow", {schema.FRAMES: frame_dim}) as writer:
            for row in draw_rows(min(_SHARD_ROWS, num_videos - start), frame_dim, lengths, seed=number):
                writer.write({**row, schema.ID: f"{number}-{row[schema.ID]}"})
        infos.append(writer.info)
    write_manifest(folder, infos, {schema.FRAMES: StreamInfo(dim=frame_dim, extractor=None)}, has_tags=True)
    return open_videos(folder)


def make_tokenizer(folder: Path) -> Any:
    """A WordPiece tokenizer of 21,128 tokens, in which each Chinese character is one."""
    tokens = [*SPECIAL_TOKENS, *_CHARACTERS]
    tokens += [f"[unused{number}]" for number in range(VOCAB_SIZE - len(tokens))]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return load_tokenizer(path)


def make_processor(sizes: Sizes, tokenizer: Any) -> VideoTextProcessor:
    """The processor of the recipe's model."""
    return build_processor(sizes.model(), tokenizer, {schema.FRAMES: sizes.frame_dim})


def make_collator(
    processor: VideoTextProcessor, tags: TagVocabulary | None = None, *, masked: bool = True
) -> PretrainCollator:
    """The training's collator, by default with 10,000 tags; without masks it only encodes and adds tags."""
    tags = tags or TagVocabulary(tuple(str(number) for number in range(NUM_TAGS)))
    return PretrainCollator(processor, tags=tags, masking=MaskingConfig(), seed=0, mask_text=masked, mask_frames=masked)


def make_module(sizes: Sizes, tokenizer: Any, *, dropout: float = 0.1) -> PretrainModule:
    """A fresh module with the objectives vtc, mlm and mfm at the published weights."""
    torch.manual_seed(0)
    encoder, _ = build_encoder(sizes.model(dropout=dropout), tokenizer, {schema.FRAMES: sizes.frame_dim})
    return PretrainModule(encoder, ObjectivesConfig(), num_tags=NUM_TAGS, seed=0)


def make_trainer(module: PretrainModule, precision: str) -> Trainer:
    """The training loop's trainer, as `vidsim pretrain` makes it, without a run folder.

    Its accelerator wraps the module's forward: one module for each precision.
    """
    accelerator = make_accelerator("bf16" if precision == "bf16" else "fp32")
    module.to(accelerator.device).train()
    layers, num_layers = layer_numbers(module, module.encoder)
    config = OptimizerConfig()
    groups = parameter_groups(module, config, lambda name: name.startswith(HEADS), layers.get, num_layers)
    return Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=make_optimizer(groups, config, accelerator.device),
        balancer=LossBalancer(BalanceConfig(), module.weights, module.shared_parameters()),
        config=LoopConfig(),
        hooks=Hooks(evaluate=dict, export=lambda folder, metrics: None, select=None),
        reporter=cast(Any, None),  # only asked when something is logged
        checkpoints=Path(),
        seed=0,
    )


def make_batches(
    videos: Videos, collator: PretrainCollator, batch_size: int, device: torch.device
) -> list[dict[str, Any]]:
    """All whole batches of a data set, in order, on the device."""
    rows = VideoRows(videos)
    starts = range(0, len(videos) - batch_size + 1, batch_size)
    return [to_device(collator([rows[0, row] for row in range(start, start + batch_size)]), device) for start in starts]
