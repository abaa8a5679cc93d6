"""Configuration of the video-text encoder: one text encoder, its streams, layout, pooling and embedding."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, BertConfig, PreTrainedConfig

FRAMES = "frames"
LAYOUTS = ("cls_first", "text_cls")
POOLINGS = ("mean", "first", "attention", "mean_unmasked", "attention_unmasked")
DEFAULT_STREAMS = {FRAMES: {"dim": 1536, "max_length": 32}}


def stream_keys(stream: str) -> tuple[str, str]:
    """Names of a stream's features and mask in `forward`: `frames` -> `frame_features`, `frame_mask`."""
    stem = stream.removesuffix("s")
    return f"{stem}_features", f"{stem}_mask"


def max_text_tokens(layout: str, max_title_tokens: int, max_asr_tokens: int) -> int:
    """Most text ids that a row can have, special tokens included.

    `cls_first` has `[CLS] [SEP] title [SEP] (asr [SEP])`, `text_cls` has `[CLS] title [SEP] (asr [SEP])`.
    """
    num_special = 3 if layout == "cls_first" else 2
    return num_special + max_title_tokens + (max_asr_tokens + 1 if max_asr_tokens else 0)


def check_streams(streams: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The streams in the order of the sequence: frames first, then by name.

    JSON files sort their keys, so the order in which the streams were written down cannot be kept.

    Raises:
        ValueError: A name, width or length that cannot work.
    """
    for name, sizes in streams.items():
        if not name.isidentifier():
            raise ValueError(f"stream {name!r}: the name must be a Python identifier")
        if set(sizes) != {"dim", "max_length"}:
            raise ValueError(f"stream {name!r}: needs exactly 'dim' and 'max_length', got {sorted(sizes)}")
        for key, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"stream {name!r}: {key} must be a whole number above 0, got {value!r}")
    if len({stream_keys(name) for name in streams}) < len(streams):
        raise ValueError(f"streams {sorted(streams)}: two of them share a batch key (plural and singular)")
    ordered = sorted(streams, key=lambda name: (name != FRAMES, name))
    return {name: dict(streams[name]) for name in ordered}


class VidsimConfig(PreTrainedConfig):
    """Everything that decides the shape of a `VideoTextEncoder` and the input it expects.

    Attributes:
        text_config: Configuration (or its dictionary) of any BERT-family encoder. Its `pad_token_id` must be
            the tokenizer's: a published system had another one and so froze the wrong row.
        streams: Name to `{"dim": width of a vector, "max_length": most vectors}`. Kept in the order of the
            sequence: frames first, then by name. May be empty: a text-only encoder.
        layout: `cls_first` = `[CLS] streams [SEP] title [SEP] (asr [SEP])`; `text_cls` = `streams [CLS]
            title [SEP] (asr [SEP])`.
        pooling: `mean` or `attention` over the real positions, `first` = [CLS]; `*_unmasked` also count
            padding and exist only to reproduce published presets.
        embedding_dim: Width of the embedding.
        max_title_tokens: Title tokens that are read, special tokens not counted.
        max_asr_tokens: Speech tokens that are read; 0: speech is not read at all.
        stream_layer_norm_eps: Of the LayerNorm that ends each stream's embedding.
        initializer_range: Standard deviation of fresh weights outside the text encoder.

    Raises:
        ValueError: A value that cannot work, named.
    """

    model_type = "vidsim"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (the base class reads it from the class)

    # Both may be left out and then have a default; `text_config` may be given as a dictionary.
    text_config: PreTrainedConfig = None  # type: ignore[assignment]
    streams: dict[str, dict[str, int]] = None  # type: ignore[assignment]
    layout: str = "cls_first"
    pooling: str = "mean"
    embedding_dim: int = 256
    max_title_tokens: int = 33
    max_asr_tokens: int = 0
    stream_layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the text configuration, fill in defaults and check."""
        text_config: Any = self.text_config
        if text_config is None:
            self.text_config = BertConfig()
        elif isinstance(text_config, dict):
            if "model_type" not in text_config:
                raise ValueError("text_config: 'model_type' is missing (for example 'bert')")
            self.text_config = AutoConfig.for_model(**text_config)
        streams: Any = self.streams
        self.streams = check_streams(DEFAULT_STREAMS if streams is None else streams)
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is none of {', '.join(LAYOUTS)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling {self.pooling!r} is none of {', '.join(POOLINGS)}")
        if self.embedding_dim < 1:
            raise ValueError(f"embedding_dim {self.embedding_dim} is below 1")
        if self.max_title_tokens < 0 or self.max_asr_tokens < 0:
            raise ValueError("max_title_tokens and max_asr_tokens must not be negative")
        for flag in ("is_decoder", "is_encoder_decoder"):
            if getattr(self.text_config, flag, False):
                raise ValueError(f"text_config has {flag}=true; an encoder (BERT family) is needed")

    @property
    def hidden_size(self) -> int:
        """Width H of the hidden states, that of the text encoder."""
        return int(self.text_config.hidden_size)

    @property
    def max_text_tokens(self) -> int:
        """Most text ids that the processor makes of a row, special tokens included."""
        return max_text_tokens(self.layout, self.max_title_tokens, self.max_asr_tokens)

    @classmethod
    def from_sizes(
        cls,
        *,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        pad_token_id: int,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        max_position_embeddings: int | None = None,
        **kwargs: Any,
    ) -> VidsimConfig:
        """Configuration of a fresh BERT encoder.

        Args:
            vocab_size: Tokens of the tokenizer.
            hidden_size: Width.
            num_layers: Layers.
            num_heads: Attention heads; must divide `hidden_size`.
            pad_token_id: The tokenizer's.
            intermediate_size: Width of the feed-forward layers; None: 4 times `hidden_size`.
            dropout: Of hidden states and of attention weights.
            max_position_embeddings: None: 512, or more where the text or a stream needs more.
            **kwargs: Fields of this class.

        Raises:
            ValueError: Sizes that do not fit.
        """
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} cannot be divided by num_heads {num_heads}")
        if not 0 <= pad_token_id < vocab_size:
            raise ValueError(f"pad_token_id {pad_token_id} is outside the vocabulary of {vocab_size}")
        config = cls(**kwargs)
        lengths = [sizes["max_length"] for sizes in config.streams.values()]
        config.text_config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=intermediate_size or 4 * hidden_size,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=max_position_embeddings or max(512, config.max_text_tokens, *lengths),
            pad_token_id=pad_token_id,
        )
        return config


VidsimConfig.register_for_auto_class("AutoConfig")
