"""From a recipe to an encoder with its processor: fresh, from a text checkpoint, or from a vidsim checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from vidsim.common.errors import UserError
from vidsim.common.files import read_json

from .config import VidsimConfig
from .encoder import VideoTextEncoder
from .heads import EmbeddingHead
from .initialization import LoadReport
from .processor import VideoTextProcessor

# The last three: what transformers meets in JSON of another shape.
_DAMAGE = (OSError, ValueError, SafetensorError, AttributeError, KeyError, TypeError)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder: where it starts from, how large it is, what it reads."""

    init_from: str | None = None
    """Folder of a BERT-family checkpoint whose weights and tokenizer are taken; null: a fresh BERT of these sizes."""
    hidden_size: int = 768
    """Width of a fresh encoder."""
    num_layers: int = 12
    """Layers of a fresh encoder."""
    num_heads: int = 12
    """Attention heads of a fresh encoder."""
    intermediate_size: int | None = None
    """Width of its feed-forward layers; null: 4 times the hidden size."""
    dropout: float = 0.1
    """Hidden and attention dropout of a fresh encoder."""
    layout: Literal["cls_first", "text_cls"] = "cls_first"
    """`[CLS] frames [SEP] title [SEP]`, or `frames [CLS] title [SEP]` (the winner's jobs 2 and 3)."""
    pooling: Literal["mean", "first", "attention", "mean_unmasked", "attention_unmasked"] = "mean"
    """How positions become one vector; `*_unmasked` also count padding, only to reproduce the published system."""
    embedding_dim: int = 256
    """Width of the embedding; the competition allows at most 256."""
    max_title_tokens: int = 33
    """Title tokens that are read (the winner's 36 text ids leave 33)."""
    max_asr_tokens: int = 0
    """Speech tokens that are read; 0: speech text is left out, as in the published system."""
    max_frames: int = 32
    """Frames that are read; of more, the centres of evenly spaced segments."""
    padding: Literal["longest", "max_length"] = "longest"
    """Pad to the longest row of the batch, or always to the maximum (the published system)."""
    use_text: bool = True
    """Read text at all."""
    use_frames: bool = True
    """Read frames and other streams at all."""

    def validate(self) -> None:
        """Refuse sizes that no encoder can have."""
        for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size", "embedding_dim", "max_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{value} is below 1", field=f"model.{name}")
        for name in ("max_title_tokens", "max_asr_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{getattr(self, name)} is below 0", field=f"model.{name}")
        if self.init_from is None and self.hidden_size % self.num_heads:
            raise UserError(
                f"{self.hidden_size} cannot be divided by num_heads {self.num_heads}", field="model.hidden_size"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"{self.dropout} is not within 0 and 1", field="model.dropout")
        if not (self.use_text or self.use_frames):
            raise UserError("use_text and use_frames are both false", field="model", fix="let it read one of them")
        if self.init_from is not None and not Path(self.init_from).is_dir():
            raise UserError(
                "no such folder",
                file=self.init_from,
                field="model.init_from",
                fix="put the checkpoint there, or set null for a fresh encoder",
            )


def build_processor(config: ModelConfig, tokenizer: Any, streams: Mapping[str, int]) -> VideoTextProcessor:
    """The processor that goes with the encoder of a recipe.

    Args:
        config: The recipe's model.
        tokenizer: A fast tokenizer.
        streams: Width of each stream of the data set.
    """
    return VideoTextProcessor(
        tokenizer=tokenizer,
        streams=_stream_sizes(config, streams),
        layout=config.layout,
        max_title_tokens=config.max_title_tokens,
        max_asr_tokens=config.max_asr_tokens,
        padding=config.padding,
        use_text=config.use_text,
        use_frames=config.use_frames,
    )


def build_encoder(
    config: ModelConfig, tokenizer: Any, streams: Mapping[str, int]
) -> tuple[VideoTextEncoder, LoadReport | None]:
    """A new encoder.

    Args:
        config: The recipe's model.
        tokenizer: Its vocabulary size and padding id are the encoder's.
        streams: Width of each stream of the data set.

    Returns:
        The encoder, float32, and what the text checkpoint did not hold or held besides (None for a fresh one).
    """
    common: dict[str, Any] = {
        "streams": _stream_sizes(config, streams),
        "layout": config.layout,
        "pooling": config.pooling,
        "embedding_dim": config.embedding_dim,
        "max_title_tokens": config.max_title_tokens,
        "max_asr_tokens": config.max_asr_tokens,
    }
    if config.init_from is not None:
        return _from_text(config.init_from, tokenizer, common)
    try:
        fresh = _fresh_config(config, tokenizer, common)
    except ValueError as error:
        raise UserError(str(error), field="model") from error
    return VideoTextEncoder(fresh), None


def _fresh_config(config: ModelConfig, tokenizer: Any, common: dict[str, Any]) -> VidsimConfig:
    return VidsimConfig.from_sizes(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size or 4 * config.hidden_size,
        dropout=config.dropout,
        pad_token_id=tokenizer.pad_token_id,
        **common,
    )


def _from_text(path: str, tokenizer: Any, common: dict[str, Any]) -> tuple[VideoTextEncoder, LoadReport]:
    try:
        return VideoTextEncoder.from_text_checkpoint(path, tokenizer=tokenizer, **common)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot start from it ({error})", file=path, field="model.init_from") from error


def _stream_sizes(config: ModelConfig, streams: Mapping[str, int]) -> dict[str, dict[str, int]]:
    if not config.use_frames:
        return {}
    return {name: {"dim": dim, "max_length": config.max_frames} for name, dim in streams.items()}


def load_encoder(
    folder: Path, *, pooling: str | None = None, reset_projection: bool = False
) -> tuple[VideoTextEncoder, VideoTextProcessor]:
    """Load a vidsim checkpoint.

    Args:
        folder: Holds config.json, model.safetensors and the processor.
        pooling: Another pooling than the checkpoint's; weights that it needs and that are not there start fresh.
        reset_projection: Start the projection to the embedding anew.

    Returns:
        The encoder, float32, and its processor.

    Raises:
        UserError: The folder is no checkpoint, a file is damaged, or weights are missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError("is not a checkpoint (no config.json)", file=folder, fix="name a folder below checkpoints/")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != VidsimConfig.model_type:
        fix = "embed features with `vidsim embed-features`, tag with `vidsim tag`, or name a run of `vidsim finetune`"
        raise UserError(f"is no video-text encoder but of the kind {kind!r}", file=folder, fix=fix)
    if not (folder / "tokenizer.json").is_file():  # transformers would go on with an empty vocabulary
        raise UserError("holds no tokenizer.json", file=folder, fix="copy the whole checkpoint folder")
    disable_progress_bar()
    try:
        config = VidsimConfig.from_pretrained(folder)
        stored_pooling = config.pooling
        config.pooling = pooling or stored_pooling
        encoder, info = VideoTextEncoder.from_pretrained(folder, config=config, output_loading_info=True)
        processor = VideoTextProcessor.from_pretrained(folder)
    except _DAMAGE as error:
        raise UserError(f"cannot be loaded ({error})", file=folder, fix="take another checkpoint") from error
    # Another pooling may need weights that are not there, or leave some over; the checkpoint's own may not.
    changes = config.pooling.startswith("attention") != stored_pooling.startswith("attention")
    missing, unexpected = (
        sorted(key for key in info[kind] if not (changes and key.startswith("attention_pooling.")))
        for kind in ("missing_keys", "unexpected_keys")
    )
    if missing or unexpected:
        raise UserError(f"weights missing: {missing or 'none'}, not known: {unexpected or 'none'}", file=folder)
    if reset_projection:
        encoder.embedding_head = EmbeddingHead(config.hidden_size, config.embedding_dim)
    return encoder, processor


def save_encoder(encoder: VideoTextEncoder, processor: VideoTextProcessor, folder: Path) -> None:
    """Write a self-contained Hugging Face checkpoint: weights, configuration, code, tokenizer and processor."""
    disable_progress_bar()  # one file a checkpoint: a bar for each would drown the metrics
    encoder.save_pretrained(folder)
    processor.save_pretrained(folder)


def check_streams_match(config: VidsimConfig, streams: Mapping[str, int], checkpoint: Path) -> None:
    """Make sure that a data set has what an encoder reads.

    Args:
        config: Of the encoder.
        streams: Width of each stream of the data set.
        checkpoint: For the message.

    Raises:
        UserError: A stream is missing, or has another width; names both.
    """
    for name, sizes in (config.streams or {}).items():
        if streams.get(name) != sizes["dim"]:
            found = f"vectors of width {streams[name]}" if name in streams else f"no stream '{name}'"
            raise UserError(
                f"the data set has {found}, the checkpoint reads vectors of width {sizes['dim']}",
                file=checkpoint,
                field=name,
                fix="use features of the extractor that the checkpoint was trained with",
            )
