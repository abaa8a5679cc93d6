"""SentencePiece unigram models as fast tokenizers that give the same ids."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD: Final = "[PAD]"
UNKNOWN: Final = "[UNK]"
CLS: Final = "[CLS]"
SEP: Final = "[SEP]"
MASK: Final = "[MASK]"

_SPACE = "\u2581"
# What the special tokens are called in published models; the first is added where a model has none.
_NAMES = {
    "pad_token": (PAD, "<pad>"),
    "cls_token": (CLS, "<cls>", "<s>"),
    "sep_token": (SEP, "<sep>", "</s>"),
    "mask_token": (MASK, "<mask>"),
}
# Numbers of sentencepiece_model.proto.
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_SUFFIX_SPACES, _TRAINER_BYTE_FALLBACK = 3, 24, 35
_NORMALIZER_CHARSMAP, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_TRIM = 2, 3, 4
_TYPE_NORMAL, _TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_USER_DEFINED = 1, 2, 3, 4
_UNIGRAM = 1


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a unigram `.model` file says.

    Attributes:
        pieces: Text and log probability of each id.
        unknown: Id of the unknown piece.
        control: Ids that stand for no text.
        user_defined: Ids that are never split.
        charsmap: Compiled normalisation rules; empty = none.
        byte_fallback: Whether unknown characters become bytes.
    """

    pieces: Sequence[tuple[str, float]]
    unknown: int
    control: frozenset[int]
    user_defined: frozenset[int]
    charsmap: bytes
    byte_fallback: bool


def read_sentencepiece(data: bytes) -> SentencePieceModel:
    """Read a serialised unigram model.

    Raises:
        ValueError: Not a SentencePiece model, or not of a kind that a fast unigram tokenizer reproduces.
    """
    try:
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(f"no SentencePiece model: {' '.join(str(error).split())}") from None
    pieces: list[tuple[str, float]] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == _MODEL_PIECES:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(_PIECE_SCORE, bytes(4)))[0]
            pieces.append((piece.get(_PIECE_TEXT, b"").decode(), score))
            types.append(piece.get(_PIECE_TYPE, _TYPE_NORMAL))
        elif number == _MODEL_TRAINER:
            trainer = dict(_fields(value))
        elif number == _MODEL_NORMALIZER:
            normalizer = dict(_fields(value))
    if trainer.get(_TRAINER_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
        raise ValueError("only unigram models are read; save others as a folder with tokenizer.json")
    if trainer.get(_TRAINER_SUFFIX_SPACES) or not normalizer.get(_NORMALIZER_DUMMY_PREFIX, True):
        raise ValueError("models that do not mark blanks before words are not supported")
    if not normalizer.get(_NORMALIZER_TRIM, True):
        raise ValueError("models that keep repeated blanks are not supported")
    return SentencePieceModel(
        pieces=pieces,
        unknown=types.index(_TYPE_UNKNOWN),
        control=frozenset(id for id, kind in enumerate(types) if kind == _TYPE_CONTROL),
        user_defined=frozenset(id for id, kind in enumerate(types) if kind == _TYPE_USER_DEFINED),
        charsmap=normalizer.get(_NORMALIZER_CHARSMAP, b""),
        byte_fallback=bool(trainer.get(_TRAINER_BYTE_FALLBACK, False)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message that SentencePiece has already accepted: number, and int or bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
                continue
            case 1:
                length = 8
            case 2:
                length = varint()
            case 5:
                length = 4
            case kind:
                raise ValueError(f"unknown wire type {kind}")
        yield key >> 3, data[position : position + length]
        position += length


def unigram_normalizer() -> normalizers.Normalizer:
    """Normalisation of the tokenizers trained here: NFKC, lower case, single blanks, no control characters."""
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(r"\p{Cc}+"), ""),
            normalizers.Strip(),
        ]
    )


def unigram_tokenizer(
    model: SentencePieceModel, normalizer: normalizers.Normalizer | None = None
) -> PreTrainedTokenizerBase:
    """A fast tokenizer with the ids of a SentencePiece model.

    Special tokens go by their usual names; those the model lacks are added after its pieces. Texts are framed as
    `[CLS] text [SEP]` and `[CLS] text [SEP] text [SEP]`.

    Args:
        model: The pieces.
        normalizer: Applied to text first; None takes the rules in the model.
    """
    tokenizer = Tokenizer(models.Unigram(list(model.pieces), unk_id=model.unknown, byte_fallback=model.byte_fallback))
    tokenizer.normalizer = normalizer or _normalizer_of(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = _decoder_of(model)
    texts = [text for text, _ in model.pieces]
    controls = [texts[id] for id in sorted(model.control | {model.unknown})]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    tokenizer.add_tokens([AddedToken(texts[id], normalized=True) for id in sorted(model.user_defined)])
    known = frozenset(texts)
    names = {role: next((name for name in options if name in known), options[0]) for role, options in _NAMES.items()}
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names.values()])
    cls, sep = names["cls_token"], names["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    return cast(
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=texts[model.unknown], **names),
    )


def _normalizer_of(model: SentencePieceModel) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps)


def _decoder_of(model: SentencePieceModel) -> decoders.Decoder:
    metaspace = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    if not model.byte_fallback:
        return metaspace
    return decoders.Sequence([decoders.ByteFallback(), metaspace, decoders.Fuse()])
