"""From titles, speech texts and feature arrays to the tensors that the encoder takes.

Legend: B videos, T text tokens, F vectors of a stream, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from .config import DEFAULT_STREAMS, FRAMES, LAYOUTS, check_streams, max_text_tokens, stream_keys

PADDINGS = ("longest", "max_length")


def segment_centres(num_vectors: int, num_kept: int) -> np.ndarray:
    """Which vectors stay when there are too many: the centres of evenly long segments.

    Vector i of the kept ones is number `floor((i + 1/2) * num_vectors / num_kept)`.

    Args:
        num_vectors: How many there are.
        num_kept: How many may stay.

    Returns:
        int64 [min(num_vectors, num_kept)], strictly rising; all of them where none is too many.
    """
    if num_vectors <= num_kept:
        return np.arange(num_vectors)
    return (2 * np.arange(num_kept) + 1) * num_vectors // (2 * num_kept)


class VideoTextProcessor(ProcessorMixin):
    """Tokenise, cut, put together and pad.

    Title and speech are tokenised without special tokens and put together here, so every tokenizer that has
    [CLS]- and [SEP]-like tokens gives the same form: `[CLS] [SEP] title [SEP] (asr [SEP])` for layout
    `cls_first` (the encoder puts the streams after [CLS]), `[CLS] title [SEP] (asr [SEP])` for `text_cls`. An
    empty title keeps its [SEP]; an empty speech text adds nothing.

    Args:
        tokenizer: A tokenizer, best a fast one.
        streams: Name to `{"dim", "max_length"}`, as in `VidsimConfig`.
        layout: As in `VidsimConfig`.
        max_title_tokens: Title tokens that are kept.
        max_asr_tokens: Speech tokens that are kept; 0: speech is not read.
        padding: To the `longest` row of the batch, or always to the most that is possible: `max_length` (the
            published system: 36 text ids and 32 frames).
        use_text: False: all texts count as empty.
        use_frames: False: all videos count as without frames.

    Raises:
        ValueError: A value that cannot work, or a tokenizer without the special tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        streams: dict[str, dict[str, int]] | None = None,
        layout: str = "cls_first",
        max_title_tokens: int = 33,
        max_asr_tokens: int = 0,
        padding: str = "longest",
        use_text: bool = True,
        use_frames: bool = True,
        **kwargs: Any,
    ) -> None:
        """Keep the settings; they are saved in `processor_config.json`."""
        super().__init__(tokenizer, **kwargs)
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
        if max_title_tokens < 0 or max_asr_tokens < 0:
            raise ValueError("max_title_tokens and max_asr_tokens must not be negative")
        self.streams = check_streams(DEFAULT_STREAMS if streams is None else streams)
        self.layout = layout
        self.max_title_tokens = max_title_tokens
        self.max_asr_tokens = max_asr_tokens
        self.padding = _checked_padding(padding)
        self.use_text = use_text
        self.use_frames = use_frames
        self._cls, self._sep, self._pad = _special_ids(tokenizer)
        self._control = {self._cls, self._sep, self._pad, tokenizer.mask_token_id}

    @property
    def model_input_names(self) -> list[str]:
        """Keys of the batches, in the order of the encoder's arguments."""
        return ["input_ids", "attention_mask", *(key for name in self.streams for key in stream_keys(name))]

    def __call__(
        self,
        titles: Sequence[str],
        asrs: Sequence[str] | None = None,
        frames: Sequence[np.ndarray] | None = None,
        *,
        padding: str | None = None,
        **streams: Sequence[np.ndarray] | None,
    ) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            titles: One for each video; may be empty.
            asrs: Speech texts; None: none.
            frames: float [n, D] for each video, n may be 0; None: none. Of more than `max_length`, those at
                `segment_centres` are kept.
            padding: Another one than the processor's.
            **streams: Vectors of further configured streams, by the stream's name.

        Returns:
            CPU tensors: `input_ids` and `attention_mask` int64 [B, T]; for each configured stream, as
            `frame_features` float [B, F, D] and `frame_mask` int64 [B, F], F = 0 where nothing was given. Features are
            float16 if all arrays are, otherwise float32.

        Raises:
            ValueError: Wrong types, numbers or widths, named by argument and row.
        """
        padding = self.padding if padding is None else _checked_padding(padding)
        given = {FRAMES: frames, **streams} if frames is not None else dict(streams)
        if unknown := sorted(set(given) - set(self.streams) - {FRAMES}):
            raise ValueError(f"{', '.join(unknown)}: no such stream; this processor has {list(self.streams)}")
        if FRAMES in given and FRAMES not in self.streams and self.use_frames:
            raise ValueError("frames were given, but this processor has no such stream")
        batch = self._text_batch(titles, asrs, padding)
        for name, sizes in self.streams.items():
            arrays = given.get(name)
            if name == FRAMES and not self.use_frames:
                arrays = None
            features_key, mask_key = stream_keys(name)
            batch[features_key], batch[mask_key] = _stream_batch(name, arrays, len(titles), sizes, padding)
        return batch

    def _text_batch(self, titles: Sequence[str], asrs: Sequence[str] | None, padding: str) -> dict[str, torch.Tensor]:
        title_ids = self._tokenize("titles", titles, self.max_title_tokens)
        asr_ids: list[list[int]] = [[]] * len(titles)
        if asrs is not None:
            if len(asrs) != len(titles):
                raise ValueError(f"{len(asrs)} asrs for {len(titles)} titles")
            asr_ids = self._tokenize("asrs", asrs, self.max_asr_tokens)
        start = [self._cls, self._sep] if self.layout == "cls_first" else [self._cls]
        rows = [
            [*start, *title, self._sep, *([*asr, self._sep] if asr else [])]
            for title, asr in zip(title_ids, asr_ids, strict=True)
        ]
        length = max_text_tokens(self.layout, self.max_title_tokens, self.max_asr_tokens)
        if padding == "longest":
            length = max((len(row) for row in rows), default=0)
        ids = np.full((len(rows), length), self._pad, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def _tokenize(self, name: str, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        if isinstance(texts, str):
            raise ValueError(f"{name} must be a list of texts, one for each video, not a single text")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}, row {i}: expected a text, got {type(text).__name__}")
        if not self.use_text or max_tokens == 0 or not texts:
            return [[] for _ in texts]
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,  # a title that reads "[SEP]" is text, not the end of the title
            truncation=True,
            max_length=max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        # A SentencePiece model may hold "</s>" as a piece like any other: the same trap by another way.
        return [
            ids if self._control.isdisjoint(ids) else [token for token in ids if token not in self._control]
            for ids in encoded["input_ids"]
        ]


def _checked_padding(padding: str) -> str:
    if padding not in PADDINGS:
        raise ValueError(f"padding {padding!r} is none of {', '.join(PADDINGS)}")
    return padding


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Ids of [CLS], [SEP] and [PAD]; some tokenizers only have <s> and </s> in the roles of the first two."""
    ids = []
    for names in (("cls_token", "bos_token"), ("sep_token", "eos_token"), ("pad_token",)):
        found = [getattr(tokenizer, f"{name}_id") for name in names if getattr(tokenizer, name) is not None]
        if not found:
            raise ValueError(f"the tokenizer has no {' or '.join(names)}")
        ids.append(found[0])
    return ids[0], ids[1], ids[2]


def _stream_batch(
    name: str, arrays: Sequence[np.ndarray] | None, batch_size: int, sizes: dict[str, int], padding: str
) -> tuple[torch.Tensor, torch.Tensor]:
    dim, max_length = sizes["dim"], sizes["max_length"]
    if arrays is None:
        return torch.zeros(batch_size, 0, dim), torch.zeros(batch_size, 0, dtype=torch.int64)
    if len(arrays) != batch_size:
        raise ValueError(f"{len(arrays)} {name} for {batch_size} titles")
    for i, array in enumerate(arrays):
        shape = np.shape(array)
        if len(shape) != 2 or shape[1] != dim:
            raise ValueError(f"{name}, row {i}: expected shape [n, {dim}], got {list(shape)}")
    counts = [min(len(array), max_length) for array in arrays]
    length = max_length if padding == "max_length" else max(counts, default=0)
    # Half precision stays: the encoder converts on its device, where it costs less than to move twice the bytes.
    is_half = all(np.asarray(array).dtype == np.float16 for array in arrays)
    features = np.zeros((batch_size, length, dim), dtype=np.float16 if is_half and arrays else np.float32)
    mask = np.zeros((batch_size, length), dtype=np.int64)
    for i, (array, count) in enumerate(zip(arrays, counts, strict=True)):
        kept = array if count == len(array) else np.asarray(array)[segment_centres(len(array), count)]
        features[i, :count] = kept
        mask[i, :count] = 1
    return torch.from_numpy(features), torch.from_numpy(mask)


VideoTextProcessor.register_for_auto_class("AutoProcessor")
