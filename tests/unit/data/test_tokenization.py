# ruff: noqa: RUF001 (full-width letters are what is tested)
from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vidsim.common.errors import UserError
from vidsim.data.tokenization import SPECIAL_TOKENS, load_tokenizer, train_tokenizer

CORPUS = [
    "a man is playing the guitar",
    "a woman is playing the piano",
    "the man plays the piano and the guitar",
    "playing games with a small dog",
    "一个男人在弹吉他",
    "一个女人在弹钢琴",
    "小狗在玩游戏",
    "Café Playing ＧＵＩＴＡＲ!",
] * 3
KINDS = ("wordpiece", "unigram")


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    train_tokenizer(CORPUS, request.param, 90, folder)
    return folder


def test_reloads_with_the_same_ids(trained: Path) -> None:
    texts = [*CORPUS, "unseen words: zebra 斑马", "", "a  b\tc"]
    ours = load_tokenizer(trained)
    assert ours(texts)["input_ids"] == AutoTokenizer.from_pretrained(trained)(texts)["input_ids"]
    assert ours.is_fast
    assert [ours.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (ours.pad_token_id, ours.unk_token_id, ours.cls_token_id, ours.sep_token_id, ours.mask_token_id) == (
        0,
        1,
        2,
        3,
        4,
    )


def test_frames_one_text_and_two(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    man, dog = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("man", "dog"))
    assert tokenizer("man")["input_ids"] == [2, *man, 3]
    assert tokenizer("man", "dog")["input_ids"] == [2, *man, 3, *dog, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_corpus_gives_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        train_tokenizer(iter(CORPUS), kind, 80, tmp_path / name)  # type: ignore[arg-type]
        contents.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert contents[0] == contents[1]


def test_wordpiece_splits_chinese_and_lowers_case(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CORPUS, "wordpiece", 200, tmp_path)
    assert tokenizer.tokenize("弹吉他 PLAYING Café") == ["弹", "吉", "他", "playing", "cafe"]


def test_wordpiece_learns_the_most_frequent_pair_first(tmp_path: Path) -> None:
    # 5 special tokens, a ##a b ##b, and one merge: aa occurs 5 times, bb twice.
    tokenizer = train_tokenizer(["aa " * 5 + "bb bb"], "wordpiece", 10, tmp_path)
    assert tokenizer.tokenize("aa bb") == ["aa", "b", "##b"]


def test_wordpiece_drops_rare_characters_where_they_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 15 - 5 special = 10, of which 80 % may be characters: 8 of the 12 digits and letters, the frequent ones.
    text = " ".join("abcdefgh" * 5) + " w x y z"
    tokenizer = train_tokenizer([text], "wordpiece", 15, tmp_path)
    assert tokenizer.tokenize("a h z") == ["a", "h", "[UNK]"]
    assert f"{4 / 44:.2%} of the characters" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_says_when_the_corpus_gives_fewer(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_tokenizer(CORPUS, kind, 5000, tmp_path)  # type: ignore[arg-type]
    assert len(SPECIAL_TOKENS) < len(tokenizer) < 5000
    assert f"the corpus gives {len(tokenizer):,} tokens, fewer than the 5,000 asked" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], [""], [" \t\n "]])
def test_no_text_is_named(kind: str, texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the corpus holds no text"):
        train_tokenizer(texts, kind, 100, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_too_small_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'vocab_size'.*must be larger than 6"):
        train_tokenizer(CORPUS, "wordpiece", 6, tmp_path)
    with pytest.raises(UserError, match=r"'vocab_size': no tokenizer of 20 tokens .*ask for more tokens"):
        train_tokenizer(CORPUS, "unigram", 20, tmp_path)


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'bpe', must be wordpiece or unigram"):
        train_tokenizer(CORPUS, "bpe", 100, tmp_path)  # type: ignore[arg-type]


def test_loads_a_vocabulary_file(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, "play", "##ing", "火", "车"]) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(path)
    assert tokenizer("Playing 火车")["input_ids"] == [2, 5, 6, 7, 8, 3]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*SPECIAL_TOKENS[:4], "a"], r"lacks \[MASK\]"),
        ([*SPECIAL_TOKENS, "a", "b", "a"], "line 8: the token 'a' stands already in line 6"),
    ],
)
def test_a_bad_vocabulary_file_is_named(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


def test_a_vocabulary_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("火\n".encode("gb2312"))
    with pytest.raises(UserError, match=r"vocab\.txt: is not UTF-8"):
        load_tokenizer(path)


def test_missing_and_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds none of tokenizer\.json, vocab\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.bin").touch()
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.bin")


def test_a_damaged_tokenizer_folder_is_named(trained: Path, tmp_path: Path) -> None:
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_mask_token_is_named(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the tokenizer has no mask_token"):
        load_tokenizer(tmp_path)


def test_loads_a_sentencepiece_model(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=buffer, vocab_size=70, hard_vocab_limit=False, minloglevel=2
    )
    path = tmp_path / "spm.model"
    path.write_bytes(buffer.getvalue())
    tokenizer = load_tokenizer(path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    assert tokenizer("the piano", add_special_tokens=False)["input_ids"] == reference.encode("the piano")
    # <s> and </s> of the model serve as cls and sep; pad and mask come after its pieces.
    assert (tokenizer.cls_token, tokenizer.sep_token) == ("<s>", "</s>")
    assert {tokenizer.pad_token_id, tokenizer.mask_token_id} == {len(reference), len(reference) + 1}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"belongs to a checkpoint.*name its folder"):
        load_tokenizer(path)


def test_a_broken_sentencepiece_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spm.model"
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"spm\.model: cannot be used as a tokenizer \(no SentencePiece model"):
        load_tokenizer(path)
