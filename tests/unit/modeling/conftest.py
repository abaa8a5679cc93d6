"""Small random text encoders of several families, tokenizers made on the spot, and batches with padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
    XLMRobertaConfig,
)

from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.encoder import VideoTextEncoder

VOCAB_SIZE = 60
STREAMS = {"frames": {"dim": 6, "max_length": 8}, "audio": {"dim": 3, "max_length": 4}}
WORDS = ["sea", "sun", "cat", "dog", "run", "jump", "red", "blue", "猫", "跑"]


def make_text_config(family: str) -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
    }
    if "roberta" in family:
        sizes["max_position_embeddings"] = 42  # two of them lie before the first position
    match family:
        case "bert":
            return BertConfig(**sizes)
        case "roberta":
            return RobertaConfig(**{**sizes, "max_position_embeddings": 42}, pad_token_id=1, type_vocab_size=1)
        case "xlm-roberta":
            return XLMRobertaConfig(**sizes, pad_token_id=1, type_vocab_size=1)
        case "electra":
            return ElectraConfig(**sizes, embedding_size=16)
        case "modernbert":
            # A window of 4 positions on each side, shorter than the padding between frames and text.
            special = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
            layers = ["full_attention", "sliding_attention"]
            return ModernBertConfig(**sizes, **special, pad_token_id=0, local_attention=8, layer_types=layers)
        case "distilbert":
            return DistilBertConfig(
                vocab_size=VOCAB_SIZE,
                dim=32,
                n_layers=2,
                n_heads=2,
                hidden_dim=48,
                max_position_embeddings=40,
            )
    raise AssertionError(family)


def make_encoder(family: str = "bert", *, seed: int = 0, **config: Any) -> VideoTextEncoder:
    torch.manual_seed(seed)
    settings = {"streams": STREAMS, "max_title_tokens": 10, "embedding_dim": 5, **config}
    model = VideoTextEncoder(VidsimConfig(text_config=make_text_config(family), **settings))
    with torch.no_grad():  # norms and biases that are not 1 and 0, so that a lost one is seen
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Three rows: full; 5 tokens, 3 frames and 2 sounds; 7 tokens, no frame and all sounds."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {"text": (9, 5, 7), "frames": (8, 3, 0), "audio": (4, 2, 4)}
    masks = {
        name: (torch.arange(max(of_rows)) < torch.tensor(of_rows)[:, None]).long() for name, of_rows in lengths.items()
    }
    return {
        "input_ids": torch.randint(5, VOCAB_SIZE, (3, 9), generator=generator),
        "attention_mask": masks["text"],
        "frame_features": torch.randn(3, 8, 6, generator=generator),
        "frame_mask": masks["frames"],
        "audio_features": torch.randn(3, 4, 3, generator=generator),
        "audio_mask": masks["audio"],
    }


@pytest.fixture
def encoder_of() -> Callable[..., VideoTextEncoder]:
    return make_encoder


@pytest.fixture
def text_config_of() -> Callable[[str], PreTrainedConfig]:
    return make_text_config


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return make_batch()


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PreTrainedTokenizerBase]:
    """`bert` (vocab.txt), `roberta` and `modernbert` (byte-level BPE), `xlm-roberta` (SentencePiece)."""
    root = tmp_path_factory.mktemp("tokenizers")
    made: dict[str, PreTrainedTokenizerBase] = {}

    def tokenizer(kind: str) -> PreTrainedTokenizerBase:
        if kind not in made:
            made[kind] = _MAKERS[kind](root / kind)
        return made[kind]

    return tokenizer


def _bert_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def _byte_level_tokenizer(special: dict[str, str]) -> PreTrainedTokenizerBase:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    order = [special[name] for name in ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")]
    bpe.train_from_iterator([" ".join(WORDS)] * 2, vocab_size=300, min_frequency=1, special_tokens=order)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **special)


def _roberta_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    return _byte_level_tokenizer({**names, "mask_token": "<mask>"})


def _modernbert_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    names = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return _byte_level_tokenizer({**names, "mask_token": "[MASK]"})


def _sentencepiece_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    import sentencepiece
    from transformers import AutoTokenizer

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 4),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "config.json").write_text('{"model_type": "xlm-roberta"}', encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


_MAKERS: dict[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    "bert": _bert_tokenizer,
    "roberta": _roberta_tokenizer,
    "xlm-roberta": _sentencepiece_tokenizer,
    "modernbert": _modernbert_tokenizer,
}
