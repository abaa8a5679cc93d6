"""The video-text encoder: any BERT-family text encoder that also reads frames and other streams.

Legend: B videos, T text tokens, F vectors of a stream, D their width, S = T + all F, H hidden width,
E embedding width, V words, W width of a word embedding.

Importing this file registers configuration, model and processor with AutoConfig, AutoModel and AutoProcessor.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.generic import ModelOutput

from .attention import PACKED, Packing, can_pack, has_local_attention
from .config import FRAMES, VidsimConfig, stream_keys
from .embeddings import InputSequence, StreamEmbedding, build_sequence, checked_stream, take_rows
from .heads import EmbeddingHead
from .initialization import LoadReport, first_position, load_text_encoder, own_memory
from .pooling import AttentionPooling, masked_mean
from .processor import VideoTextProcessor


@dataclass
class VidsimOutput(ModelOutput):
    """What the encoder returns.

    Attributes:
        last_hidden_state: float [B, S, H], in the order of the layout; padded positions hold finite numbers
            that mean nothing.
        mask: bool [B, S], True = real position.
        text_hidden: float [B, T, H], aligned with `input_ids`.
        frame_hidden: float [B, F, H], aligned with `frame_features`; None where these were not given.
        cls_hidden: float [B, H], the state of [CLS].
        embedding: float32 [B, E], of length 1.
        projection: float [B, E], the embedding before its normalisation.
        pooled: float [B, H], what the embedding head was given.
    """

    # ModelOutput wants a default of None; all but frame_hidden are always there.
    last_hidden_state: torch.Tensor = None  # type: ignore[assignment]
    mask: torch.Tensor = None  # type: ignore[assignment]
    text_hidden: torch.Tensor = None  # type: ignore[assignment]
    frame_hidden: torch.Tensor | None = None
    cls_hidden: torch.Tensor = None  # type: ignore[assignment]
    embedding: torch.Tensor = None  # type: ignore[assignment]
    projection: torch.Tensor = None  # type: ignore[assignment]
    pooled: torch.Tensor = None  # type: ignore[assignment]


class VideoTextEncoder(PreTrainedModel):
    """Text encoder + stream embeddings + pooling + embedding head.

    Args:
        config: Shapes, layout, pooling.

    Raises:
        ValueError: The text encoder has too few positions for the configured lengths.
    """

    config: VidsimConfig
    config_class = VidsimConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Positions restart for each stream; transformers' flash back-ends take that for packed sequences.
    _supports_flash_attn = False

    def __init__(self, config: VidsimConfig) -> None:
        """Build the encoder with fresh weights."""
        super().__init__(config)
        self.text: PreTrainedModel = AutoModel.from_config(config.text_config)
        self._strip_pooler()
        width = self.word_embeddings().shape[1]
        self.streams = nn.ModuleDict(
            {
                name: StreamEmbedding(sizes["dim"], sizes["max_length"], width, config.stream_layer_norm_eps)
                for name, sizes in config.streams.items()
            }
        )
        learned = config.pooling in ("attention", "attention_unmasked")
        self.attention_pooling = AttentionPooling(config.hidden_size) if learned else None
        self.embedding_head = EmbeddingHead(config.hidden_size, config.embedding_dim)
        # Where positions cannot be given (RoFormer), streams and text share the positions of one sequence.
        self._own_positions = "position_ids" in inspect.signature(self.text.forward).parameters
        self._first_position = first_position(self.text)
        self._check_lengths()
        self.post_init()
        self._pack_where_possible()

    def _pack_where_possible(self) -> None:
        if can_pack(self.text):
            self.text.set_attn_implementation(PACKED)

    def _strip_pooler(self) -> None:
        # An unused pooler has no gradient, which DistributedDataParallel refuses.
        if getattr(self.text, "pooler", None) is not None:
            self.text.pooler = None  # type: ignore[assignment]

    @property
    def num_positions(self) -> int | None:
        """Positions that the text encoder has for one stream (None: no limit)."""
        limit = getattr(self.text.config, "max_position_embeddings", None)
        return None if limit is None or limit < 1 else int(limit) - self._first_position

    def _check_lengths(self) -> None:
        lengths = {f"stream {name!r}": sizes["max_length"] for name, sizes in self.config.streams.items()}
        lengths["max_title_tokens + max_asr_tokens + special tokens"] = self.config.max_text_tokens
        if not self._own_positions:
            lengths = {" + ".join(lengths): sum(lengths.values())}
        for name, length in lengths.items():
            if self.num_positions is not None and length > self.num_positions:
                raise ValueError(
                    f"{name}: {length} positions are needed, but the text encoder has {self.num_positions}"
                )

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's word embeddings."""
        return self.text.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's word embeddings."""
        self.text.set_input_embeddings(value)

    def word_embeddings(self) -> torch.Tensor:
        """The word-embedding table [V, W]; the decoder of masked language modelling is tied to it."""
        weight = self.text.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def layers(self) -> nn.ModuleList:
        """The text encoder's layers, bottom to top."""
        return next(m for m in self.text.modules() if isinstance(m, nn.ModuleList) and len(m))

    def last_layer_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the text encoder's last layer, all of which every loss reaches."""
        return self.layers()[-1].parameters()

    def prepare_training(self, *, gradient_checkpointing: bool = False, compile: bool = False) -> None:
        """Choose how the layers are run; names of parameters and what is saved stay as they are.

        Args:
            gradient_checkpointing: Keep no activations inside a layer, compute them again.
            compile: Compile each layer, for any number of positions. All layers share the compiled code.
        """
        if gradient_checkpointing:
            with warnings.catch_warnings():  # renamed in newer versions of transformers; older ones know this name
                warnings.simplefilter("ignore", FutureWarning)
                self.gradient_checkpointing_enable({"use_reentrant": False})
        if compile:
            for layer in self.layers():
                layer.compile(dynamic=True)

    def inputs_of(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The arguments of `forward` among the keys of a batch."""
        keys = ["input_ids", "attention_mask"]
        for stream in self.streams:
            keys += stream_keys(stream)
        return {key: batch[key] for key in keys if batch.get(key) is not None}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        frame_features: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        **streams: torch.Tensor | None,
    ) -> VidsimOutput:
        """Encode videos.

        Args:
            input_ids: int64 [B, T], special tokens included, as the processor makes them.
            attention_mask: int64 or bool [B, T], 1 = real token; None: all real.
            frame_features: float [B, F, D]; None: no frames.
            frame_mask: int64 or bool [B, F], 1 = real frame; None: all real.
            **streams: `{stream}_features` and `{stream}_mask` of further configured streams.

        Returns:
            Hidden states and the embedding.

        Raises:
            ValueError: An unknown stream, a wrong width, or more positions than the encoder has.
        """
        given = {"frame_features": frame_features, "frame_mask": frame_mask, **streams}
        present = {key: value for key, value in given.items() if value is not None}
        sequence = self._sequence(input_ids, attention_mask, present)
        hidden = self._encode(sequence)
        text_hidden, by_stream = sequence.split(hidden)
        cls_hidden = text_hidden[:, 0]
        pooled = self._pool(hidden, sequence.mask, cls_hidden)
        embedding, projection = self.embedding_head(pooled)
        return VidsimOutput(
            last_hidden_state=hidden,
            mask=sequence.mask,
            text_hidden=text_hidden,
            frame_hidden=by_stream.get(FRAMES) if frame_features is not None else None,
            cls_hidden=cls_hidden,
            embedding=embedding,
            projection=projection,
            pooled=pooled,
        )

    def _sequence(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, given: dict[str, torch.Tensor]
    ) -> InputSequence:
        """Check the inputs and put them together."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.ndim != 2 or mask.shape != input_ids.shape:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}, attention_mask {tuple(mask.shape)}: "
                "both must be [videos, tokens]"
            )
        inputs = self._stream_inputs(given, input_ids.shape[0])
        self._check_num_tokens(input_ids.shape[1], sum(m.shape[1] for _, m in inputs.values()))
        return build_sequence(
            self.get_input_embeddings()(input_ids),
            mask.bool(),
            {name: (self._stream(name)(features, m), m) for name, (features, m) in inputs.items()},
            num_before=1 if self.config.layout == "cls_first" else 0,
            first_position=self._first_position,
        )

    def _stream(self, name: str) -> StreamEmbedding:
        stream = self.streams[name]
        assert isinstance(stream, StreamEmbedding)
        return stream

    def _stream_inputs(
        self, given: dict[str, torch.Tensor], batch_size: int
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Features and bool mask of each configured stream, empty where a stream was not given."""
        names = list(self.streams)
        if unknown := sorted(set(given) - {key for name in names for key in stream_keys(name)}):
            raise ValueError(f"{', '.join(unknown)}: no such input; the streams are {names or 'none'}")
        inputs = {}
        for name, sizes in self.config.streams.items():
            features_key, mask_key = stream_keys(name)
            if features_key in given:
                features, mask = given[features_key], given.get(mask_key)
                inputs[name] = checked_stream(name, features, mask, batch_size=batch_size, **sizes)
            elif mask_key in given:
                raise ValueError(f"{mask_key} was given without {features_key}")
            else:
                inputs[name] = self._stream(name).empty(batch_size)
        return inputs

    def _check_num_tokens(self, num_tokens: int, num_vectors: int) -> None:
        # A text that is too long would end in "The expanded size of the tensor ..." deep inside the encoder.
        length = num_tokens if self._own_positions else num_tokens + num_vectors
        if self.num_positions is not None and length > self.num_positions:
            raise ValueError(
                f"{num_tokens} tokens and {num_vectors} vectors need {length} positions, the text encoder "
                f"has {self.num_positions}: lower max_title_tokens or max_asr_tokens"
            )

    def _encode(self, sequence: InputSequence) -> torch.Tensor:
        """Hidden states float [B, S, H] of the sequence, in its own order."""
        if self._is_packed():
            packing = Packing.of(sequence.mask)
            return packing.spread(self._encode_packed(sequence, packing))
        embeds, mask, position_ids, back = sequence.compact()
        arguments: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": self._mask(mask)}
        if self._own_positions:
            arguments["position_ids"] = position_ids
        return take_rows(self.text(**arguments)[0], back)

    def _is_packed(self) -> bool:
        # Pooling that counts padding needs the padding. A user may have chosen another attention, for example
        # `model.set_attn_implementation("sdpa")`, which pads.
        implementation = self.text.config._attn_implementation
        return implementation == PACKED and not self.config.pooling.endswith("_unmasked")

    def _encode_packed(self, sequence: InputSequence, packing: Packing) -> torch.Tensor:
        """Hidden states float [N, H] of the real positions only."""
        arguments: dict[str, Any] = {
            "inputs_embeds": packing.pack(sequence.embeds).unsqueeze(0),
            # Without a mask transformers would make one of N x N.
            "attention_mask": packing.mask[:, None, None, :],
            "packing": packing,
        }
        if self._own_positions:
            positions = sequence.position_ids.expand(sequence.mask.shape)
            arguments["position_ids"] = packing.pack(positions).unsqueeze(0)
        hidden: torch.Tensor = self.text(**arguments)[0]
        return hidden[0]

    def _mask(self, mask: torch.Tensor) -> torch.Tensor:
        # Of a mask with two dimensions, transformers asks whether it is all ones and so waits for the device.
        # One with four dimensions is used as it is, but would also replace a local-attention window.
        if self.text.config._attn_implementation in ("sdpa", PACKED) and not has_local_attention(self.text):
            return mask[:, None, None, :]
        return mask.long()

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor, cls_hidden: torch.Tensor) -> torch.Tensor:
        match self.config.pooling:
            case "mean":
                return masked_mean(hidden, mask)
            case "mean_unmasked":
                return hidden.float().mean(dim=1)
            case "first":
                return cls_hidden
        assert self.attention_pooling is not None
        return self.attention_pooling(hidden, mask if self.config.pooling == "attention" else None)

    @staticmethod
    def hidden_mean(output: VidsimOutput) -> torch.Tensor:
        """Masked mean of the last hidden state, float32 [B, H]: the honest probe of a pretrained encoder."""
        return masked_mean(output.last_hidden_state, output.mask)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved encoder, as every `PreTrainedModel`; on a CPU it then computes the very same bits."""
        loaded = super().from_pretrained(*args, **kwargs)
        own_memory(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @classmethod
    def from_text_checkpoint(
        cls, path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, **config: Any
    ) -> tuple[VideoTextEncoder, LoadReport]:
        """Start from the weights of a text encoder; streams, pooling and embedding head are fresh.

        Args:
            path: Folder of any BERT-family checkpoint.
            tokenizer: Its padding id becomes the encoder's; None: the one in the folder, if there is one.
            **config: Fields of `VidsimConfig`.

        Returns:
            The encoder, float32, in eval mode like after `from_pretrained`, and the report.

        Raises:
            ValueError: No such folder, weights that are missing (named), or a tokenizer that does not fit.
        """
        text, report = load_text_encoder(path, tokenizer)
        text_config = copy.deepcopy(text.config)
        text_config.name_or_path = ""  # a path of this machine says nothing elsewhere
        model = cls(VidsimConfig(text_config=text_config, **config))
        model.text = text
        model._strip_pooler()
        model._pack_where_possible()
        return model.eval(), report


VideoTextEncoder.register_for_auto_class("AutoModel")
AutoConfig.register(VidsimConfig.model_type, VidsimConfig, exist_ok=True)
AutoModel.register(VidsimConfig, VideoTextEncoder, exist_ok=True)
AutoProcessor.register(VidsimConfig, VideoTextProcessor, exist_ok=True)
