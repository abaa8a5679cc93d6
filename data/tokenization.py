"""Tokenizers: load one, or train one on texts. Always fast, always with the five special tokens."""

from __future__ import annotations

import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, cast

import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from vidsim.common.errors import UserError
from vidsim.data.unigram import (
    CLS,
    MASK,
    PAD,
    SEP,
    UNKNOWN,
    read_sentencepiece,
    unigram_normalizer,
    unigram_tokenizer,
)

TokenizerKind = Literal["wordpiece", "unigram"]

SPECIAL_TOKENS: Final = (PAD, UNKNOWN, CLS, SEP, MASK)

_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "*.model")
_NAME_ONE = "name a checkpoint folder, a vocab.txt or a SentencePiece .model file"
_CONTINUATION = "##"
# Single characters may take this share of a WordPiece vocabulary; the rarest beyond it become [UNK].
_ALPHABET_SHARE = 0.8
_WORDS_A_LINE = 10_000
_MAX_SENTENCE_BYTES = 2**24


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from disk; nothing is ever downloaded.

    Args:
        source: A checkpoint or tokenizer folder, a `vocab.txt` (BERT WordPiece: lower case, Chinese characters split)
            or a SentencePiece unigram `.model` (special tokens it lacks are added at the end).

    Raises:
        UserError: Nothing there, no tokenizer in it, or one without pad, unk, cls, sep or mask token.
    """
    path = Path(source)
    if path.is_dir():
        tokenizer = _load_folder(path)
    elif not path.is_file():
        raise UserError("no such file or folder", file=path, fix=_NAME_ONE)
    elif path.suffix == ".txt":
        tokenizer = _load_vocabulary(path)
    elif path.suffix == ".model":
        tokenizer = _load_sentencepiece(path)
    else:
        raise UserError("is not a tokenizer", file=path, fix=_NAME_ONE)
    missing = [role for role in _ROLES if getattr(tokenizer, role) is None]
    if missing:
        raise UserError(f"the tokenizer has no {', '.join(missing)}", file=path, fix="use one of a BERT-like model")
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], kind: TokenizerKind, vocab_size: int, out: str | Path
) -> PreTrainedTokenizerBase:
    """Train a tokenizer and save it as a folder that `load_tokenizer` and `AutoTokenizer` read.

    The same texts give the same tokenizer. `[PAD] [UNK] [CLS] [SEP] [MASK]` are ids 0 to 4. Text is put into lower
    case and normalised; WordPiece splits Chinese characters, unigram (SentencePiece) may join them.

    Args:
        texts: The corpus; read once.
        kind: `wordpiece` or `unigram`.
        vocab_size: Number of tokens wanted; a small corpus gives fewer, which is said on standard error.
        out: Folder to write.

    Raises:
        UserError: No text, or a vocabulary too small for the characters of the corpus.
    """
    if vocab_size <= len(SPECIAL_TOKENS) + 1:
        raise UserError(f"is {vocab_size}, must be larger than {len(SPECIAL_TOKENS) + 1}", field="vocab_size")
    match kind:
        case "wordpiece":
            tokenizer = _train_wordpiece(texts, vocab_size)
        case "unigram":
            tokenizer = _train_unigram(texts, vocab_size)
        case _:
            raise UserError(f"is {kind!r}, must be wordpiece or unigram", field="kind")
    if len(tokenizer) < vocab_size:
        print(
            f"the corpus gives {len(tokenizer):,} tokens, fewer than the {vocab_size:,} asked",
            file=sys.stderr,
        )
    Path(out).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    return tokenizer


def _load_folder(folder: Path) -> PreTrainedTokenizerBase:
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise UserError(f"holds none of {', '.join(_TOKENIZER_FILES)}", file=folder, fix="name a checkpoint folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # A damaged tokenizer.json comes up as a bare Exception of the Rust library.
    except Exception as error:
        raise UserError(f"the tokenizer cannot be loaded ({error})", file=folder) from error
    if not tokenizer.is_fast:
        raise UserError("the tokenizer has no fast version", file=folder, fix="save it with a tokenizer.json")
    return cast(PreTrainedTokenizerBase, tokenizer)


def _load_vocabulary(path: Path) -> PreTrainedTokenizerBase:
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 ({error})", file=path) from None
    tokens = [token.removesuffix("\r") for token in (tokens[:-1] if tokens[-1] == "" else tokens)]
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if token in vocabulary:
            what = f"the token {token!r} stands already in line {vocabulary[token] + 1}"
            raise UserError(what, file=path, record=number + 1)
        vocabulary[token] = number
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise UserError(f"lacks {', '.join(missing)}", file=path, fix="name the vocab.txt of a BERT model")
    return _bert_tokenizer(vocabulary)


def _bert_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerBase:
    return cast(
        PreTrainedTokenizerBase,
        BertTokenizer(vocab=vocabulary, do_lower_case=True, tokenize_chinese_chars=True),
    )


def _train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not words:
        raise UserError("the corpus holds no text", field="texts")
    alphabet, lost = _choose_alphabet(words, int(_ALPHABET_SHARE * (vocab_size - len(SPECIAL_TOKENS))))
    if lost:
        print(f"{lost:.2%} of the characters do not fit into the vocabulary: [UNK]", file=sys.stderr)
    # The Rust trainer numbers characters in the random order of its hash table, and its choices depend on the
    # numbers. Handing it all characters as special tokens fixes the numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(_repeated(words, frozenset(alphabet)), trainer)
    return _bert_tokenizer(tokenizer.get_vocab())


def _choose_alphabet(words: Counter[str], limit: int) -> tuple[list[str], float]:
    """At most `limit` pieces of one character, sorted, and the share of the corpus' characters left out.

    The most frequent characters are taken, each with its form inside a word if it occurs there.
    """
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        inside.update(word[1:])
    alphabet: list[str] = []
    lost = 0
    for character in sorted(counts, key=lambda character: (-counts[character], character)):
        forms = [character, _CONTINUATION + character][: 1 + (character in inside)]
        if not lost and len(alphabet) + len(forms) <= limit:
            alphabet += forms
        else:
            lost += counts[character]
    return sorted(alphabet), lost / counts.total()


def _repeated(words: Counter[str], alphabet: frozenset[str]) -> Iterator[str]:
    """Lines in which each word stands as often as counted; words that will be [UNK] are left out."""
    for word, count in sorted(words.items()):
        if alphabet.issuperset(word):
            for start in range(0, count, _WORDS_A_LINE):
                yield " ".join([word] * min(_WORDS_A_LINE, count - start))


def _train_unigram(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    normalizer = unigram_normalizer()
    filled = (sentence for text in texts if (sentence := normalizer.normalize_str(text)))
    first = next(filled, None)
    if first is None:
        raise UserError("the corpus holds no text", field="texts")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], filled),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            max_sentence_length=_MAX_SENTENCE_BYTES,
            # Ids 0 to 4, as in SPECIAL_TOKENS.
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece=PAD,
            unk_piece=UNKNOWN,
            control_symbols=[CLS, SEP, MASK],
            num_threads=1,  # the order of sums, and so the result, depends on it
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no tokenizer of {vocab_size:,} tokens ({reason})", field="vocab_size", fix="ask for more tokens"
        ) from error
    return unigram_tokenizer(read_sentencepiece(model.getvalue()), normalizer)


def _load_sentencepiece(path: Path) -> PreTrainedTokenizerBase:
    if (path.parent / "config.json").is_file():
        # XLM-RoBERTa's ids, among others, are not those of the model file.
        raise UserError("belongs to a checkpoint", file=path, fix=f"name its folder, {path.parent}")
    try:
        return unigram_tokenizer(read_sentencepiece(path.read_bytes()))
    except ValueError as error:
        raise UserError(f"cannot be used as a tokenizer ({error})", file=path) from error
