from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import Videos, open_videos
from vidsim.data.corpus_tokenizer import TokenizerConfig, corpus_tokenizer, texts


@pytest.fixture
def videos(write_data_set: Any) -> Videos:
    return open_videos(
        write_data_set(
            [
                {"id": "a", "title": "sea sun", "asr": "spoken"},
                {"id": "b", "title": "hidden", "asr": ""},
                {"id": "c", "title": "", "asr": "cat"},
            ]
        )
    )


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "given" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngiven\n", encoding="utf-8")
    (path.parent / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return path


ROWS = [np.array([2, 0])]


def words(tokenizer: Any, text: str) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"]))


def test_only_the_rows_asked_for_are_read(videos: Videos) -> None:
    assert list(texts(videos, ROWS)) == ["cat", "sea sun", "spoken"]
    assert list(texts(videos, [np.array([1]), np.array([0])])) == ["hidden", "sea sun", "spoken"]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_it_is_trained_on_them_alone(videos: Videos, tmp_path: Path, kind: Any) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=60)
    tokenizer = corpus_tokenizer(config, None, videos, ROWS, tmp_path / "out", keep=False)
    known = tokenizer.unk_token_id
    assert known not in tokenizer("sea sun cat spoken", add_special_tokens=False)["input_ids"]
    assert known in tokenizer("hidden", add_special_tokens=False)["input_ids"]  # its h, i, d are in no other text
    again = corpus_tokenizer(config, None, videos, ROWS, tmp_path / "out", keep=True)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_given_one_wins_over_that_of_the_checkpoint(videos: Videos, vocabulary: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(path=str(vocabulary))
    tokenizer = corpus_tokenizer(config, "no such checkpoint", videos, ROWS, tmp_path / "out", keep=False)
    assert words(tokenizer, "given sea") == ["given", "[UNK]"]


def test_that_of_the_checkpoint_is_taken_and_kept(videos: Videos, vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = corpus_tokenizer(TokenizerConfig(), str(vocabulary.parent), videos, ROWS, tmp_path / "out", keep=False)
    assert words(tokenizer, "given") == ["given"]
    vocabulary.unlink()  # a resumed run does not need it any more
    again = corpus_tokenizer(TokenizerConfig(), str(vocabulary.parent), videos, ROWS, tmp_path / "out", keep=True)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_what_an_earlier_run_left_is_not_taken(videos: Videos, vocabulary: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=60)
    corpus_tokenizer(config, None, videos, ROWS, tmp_path / "out", keep=False)
    given = TokenizerConfig(path=str(vocabulary))
    tokenizer = corpus_tokenizer(given, None, videos, ROWS, tmp_path / "out", keep=False)
    assert words(tokenizer, "given") == ["given"]
    again = corpus_tokenizer(given, None, videos, ROWS, tmp_path / "out", keep=True)
    assert words(again, "given") == ["given"]


def test_a_vocabulary_of_special_tokens_only_is_refused() -> None:
    TokenizerConfig(vocab_size=16).validate()
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size.*15 is below 16"):
        TokenizerConfig(vocab_size=15).validate()
