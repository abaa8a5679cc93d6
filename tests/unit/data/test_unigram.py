# ruff: noqa: RUF001 (full-width letters are what is tested)
from __future__ import annotations

import io
from typing import Any

import pytest
import sentencepiece

from vidsim.data.unigram import read_sentencepiece, unigram_tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "the lazy dog sleeps; the fox is quick",
    "Ｆｕｌｌ width and ½ a cup of café",
    "一只敏捷的狐狸跳过了懒狗",
    "狐狸和狗在睡觉",
] * 4
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two   blanks  ",
    "tab\there",
    "unseen: ζ and 🦊🦊 zebra",
    "the\u2581fox",
    "QUICK Brown ½ ＦＯＸ",
    "狐狸 fox狗",
]


def train(**options: Any) -> bytes:
    buffer = io.BytesIO()
    settings = {"vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=buffer, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization_rule_name": "nmt_nfkc_cf"},
        {"normalization_rule_name": "identity"},
        {"byte_fallback": True, "vocab_size": 350},
        {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1},
        {"user_defined_symbols": ["zebra"]},
    ],
    ids=["default", "case_folding", "identity", "bytes", "bert_specials", "user_defined"],
)
def test_gives_the_ids_of_sentencepiece(options: dict[str, Any]) -> None:
    data = train(**options)
    tokenizer = unigram_tokenizer(read_sentencepiece(data))
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text), repr(text)


def test_decodes_to_the_text() -> None:
    tokenizer = unigram_tokenizer(read_sentencepiece(train()))
    ids = tokenizer("the lazy fox 狐狸")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the lazy fox 狐狸"


def test_reads_what_the_model_says() -> None:
    model = read_sentencepiece(train(user_defined_symbols=["zebra"], normalization_rule_name="identity"))
    assert [text for text, _ in model.pieces[:4]] == ["<unk>", "<s>", "</s>", "zebra"]
    assert (model.unknown, model.control, model.user_defined) == (0, {1, 2}, {3})
    assert model.charsmap == b""
    assert not model.byte_fallback
    assert all(score <= 0 for _, score in model.pieces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bpe"}, "only unigram models"),
        ({"remove_extra_whitespaces": False}, "keep repeated blanks"),
        ({"add_dummy_prefix": False}, "do not mark blanks before words"),
        ({"treat_whitespace_as_suffix": True}, "do not mark blanks before words"),
    ],
)
def test_other_kinds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sentencepiece(train(**options))


def test_damaged_models_raise_value_error_only() -> None:
    data = train()
    for cut in range(1, len(data), 97):
        try:
            read_sentencepiece(data[:cut])
        except ValueError:
            continue
