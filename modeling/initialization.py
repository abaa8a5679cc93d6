"""Weights from text checkpoints: the encoder's, and the masked-language-modelling head's.

Everything is read by transformers' `from_pretrained`: safetensors, or old `.bin` files by its weights-only
loader.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .heads import MlmHead

# Where masked-LM classes keep the parts of their head, most particular first: dense, LayerNorm, bias.
_MLM_HEADS = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
    ("head.dense", "head.norm", "decoder.bias"),
)


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint did not hold, and what it held besides.

    Attributes:
        missing: Parameters that keep their fresh values.
        unexpected: Tensors of the checkpoint that were left out.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for a log."""
        return f"missing: {_names(self.missing)}; left out: {_names(self.unexpected)}"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) or "nothing"


def load_text_encoder(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, LoadReport]:
    """Load a text encoder without its pooler.

    Args:
        path: Folder of a BERT-family checkpoint.
        tokenizer: Its padding id is put into the model; None: the one in the folder, if there is one.

    Returns:
        The model, float32, and the report (never with missing weights).

    Raises:
        ValueError: No such folder, weights that are missing (named), or a tokenizer that does not fit.
    """
    folder = _checkpoint_folder(path)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type == "vidsim":
        raise ValueError(f"{folder}: a vidsim checkpoint; load it by VideoTextEncoder.from_pretrained")
    text, info = AutoModel.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} weights of the encoder are missing: {_names(missing)}")
    unexpected = set(info["unexpected_keys"])
    if getattr(text, "pooler", None) is not None:
        pooler = {key for key in text.state_dict() if key.startswith("pooler.")}
        unexpected |= pooler - set(info["missing_keys"])
        text.pooler = None
    tokenizer = tokenizer if tokenizer is not None else _tokenizer_in(folder)
    if tokenizer is not None:
        _adopt_tokenizer(text, tokenizer, folder)
    own_memory(text)
    return text, LoadReport(unexpected=tuple(sorted(unexpected)))


def load_mlm_head(path: str | Path, head: MlmHead) -> LoadReport:
    """Load the masked-language-modelling head of a text checkpoint, as far as it holds one.

    Args:
        path: Folder of a BERT-family checkpoint.
        head: Changed in place; parameters that the checkpoint lacks keep their values and are reported.

    Returns:
        The report: parameters of the head that are missing, and tensors that do not fit its shapes.

    Raises:
        ValueError: No such folder.
    """
    folder = _checkpoint_folder(path)
    everything = tuple(name for name, _ in head.named_parameters())
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return LoadReport(missing=everything)
    model, info = AutoModelForMaskedLM.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    found = {key: value for key, value in model.state_dict().items() if key not in info["missing_keys"]}
    sources = _head_sources(model)
    missing, unexpected = [], []
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            value = found.get(sources.get(name, ""))
            if value is not None and value.shape == parameter.shape:
                parameter.copy_(value)
                continue
            missing.append(name)
            if value is not None:
                unexpected.append(sources[name])
    return LoadReport(missing=tuple(missing), unexpected=tuple(unexpected))


def own_memory(model: nn.Module) -> None:
    """Copy CPU weights out of the mapping of the file they were loaded from.

    There they lie at odd addresses, where CPU kernels take other paths and round differently: the same weights
    would give other last bits than before they were saved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def first_position(text: PreTrainedModel) -> int:
    """Position id of a sequence's first token: 0, or the one after the padding id in RoBERTa's relatives.

    They are known by the padding row of their position table, not by name.
    """
    for name, module in text.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _checkpoint_folder(path: str | Path) -> Path:
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: not the folder of a checkpoint (it has no config.json)")
    return folder


def _head_sources(model: PreTrainedModel) -> dict[str, str]:
    """Parameter of `MlmHead` -> parameter of a masked-LM model."""
    keys = model.state_dict()
    for dense, norm, bias in _MLM_HEADS:
        if f"{dense}.weight" in keys:
            return {
                "dense.weight": f"{dense}.weight",
                "dense.bias": f"{dense}.bias",
                "norm.weight": f"{norm}.weight",
                "norm.bias": f"{norm}.bias",
                "bias": bias,
            }
    return {}


def _tokenizer_in(folder: Path) -> PreTrainedTokenizerBase | None:
    vocabularies = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
    if not any(any(folder.glob(pattern)) for pattern in vocabularies):
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _adopt_tokenizer(text: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Let the padding id be the tokenizer's: a published config.json had another one."""
    words = text.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    if len(tokenizer) > words.num_embeddings:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the encoder only {words.num_embeddings}"
        )
    pad = tokenizer.pad_token_id
    if pad is None or pad == text.config.pad_token_id:
        return
    if first_position(text) > 0:
        raise ValueError(
            f"{folder}: the tokenizer pads with {pad}, config.json says {text.config.pad_token_id}, and the "
            "position table depends on it: take the tokenizer that belongs to the checkpoint"
        )
    text.config.pad_token_id = pad
    if words.padding_idx is not None:
        words.padding_idx = pad
