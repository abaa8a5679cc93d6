"""What each objective takes from the encoder's output and from the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.losses.masked import masked_frame, masked_token
from vidsim.modeling.losses.tags import sample_log_uniform, sampled_softmax, tag_bce
from vidsim.modeling.losses.video_text import info_nce, matching
from vidsim.modeling.objectives.base import Objective, WindowContext, build_window
from vidsim.modeling.objectives.contrastive import ContrastiveConfig, ContrastiveObjective
from vidsim.modeling.objectives.inputs import clean_frames, clean_ids, rows_with_both, stream_inputs
from vidsim.modeling.objectives.mfm import MfmConfig, MfmObjective
from vidsim.modeling.objectives.mlm import MlmConfig, MlmObjective
from vidsim.modeling.objectives.vtc import VtcConfig, VtcObjective
from vidsim.modeling.objectives.vtm import VtmConfig, VtmObjective, draw_partners

HIDDEN, FRAME_DIM, VOCABULARY, NUM_TAGS, MASK = 8, 6, 30, 5, 4


def make_config(layout: str = "cls_first", **changes: Any) -> VidsimConfig:
    streams = {"frames": {"dim": FRAME_DIM, "max_length": 4}, "audio": {"dim": 3, "max_length": 2}}
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_layers": 1,
        "num_heads": 2,
        "embedding_dim": 4,
    }
    fields = {"pad_token_id": 0, "dropout": 0.0, "layout": layout, "streams": streams}
    return VidsimConfig.from_sizes(**{**sizes, **fields, **changes})


def make_encoder(config: VidsimConfig) -> VideoTextEncoder:
    torch.manual_seed(0)
    return VideoTextEncoder(config).eval()


def make_batch() -> dict[str, Any]:
    """Three videos: complete; without frames; with an empty title (layout cls_first)."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[2, 3, MASK, 11, 12, 3], [2, 3, 13, 14, 3, 0], [2, 3, 3, 0, 0, 0]])
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[0, 4] = 10, 12
    frames = torch.randn(3, 4, FRAME_DIM, generator=generator)
    frame_mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    mfm_labels = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "mlm_labels": labels,
        "frame_features": frames.masked_fill(mfm_labels[..., None], 0.0),
        "frame_mask": frame_mask,
        "audio_features": torch.randn(3, 2, 3, generator=generator),
        "audio_mask": torch.ones(3, 2, dtype=torch.int64),
        "mfm_labels": mfm_labels,
        "mfm_targets": frames,
        "tag_ids": torch.tensor([0, 3, 1]),
        "tag_rows": torch.tensor([0, 0, 2]),
        "has_tags": torch.tensor([True, False, True]),
    }


def run(objective: Any, encoder: VideoTextEncoder, batch: dict[str, Any]) -> tuple[Tensor, Any, WindowContext]:
    """Loss, encoder output and window of one step that is one batch."""
    checked: Objective = objective
    window = build_window([batch], [checked], step=2, seed=1, device="cpu")
    output = encoder(**encoder.inputs_of(batch))
    return objective(output, batch, window, encoder), output, window


def test_vtc_reads_the_cls_state() -> None:
    config, batch = make_config(), make_batch()
    objective = VtcObjective(VtcConfig(), config, num_tags=NUM_TAGS)
    loss, output, _ = run(objective, make_encoder(config), batch)
    logits = objective.head(output.cls_hidden)
    torch.testing.assert_close(loss, tag_bce(logits, batch["tag_ids"], batch["tag_rows"], batch["has_tags"]))


@pytest.mark.parametrize("num_negatives", [0, 12])
def test_vtc_sampled_softmax_reads_the_projection(num_negatives: int) -> None:
    config, batch = make_config(), make_batch()
    settings = VtcConfig(input="embedding", loss="sampled_softmax", num_negatives=num_negatives)
    objective = VtcObjective(settings, config, num_tags=NUM_TAGS)
    loss, output, window = run(objective, make_encoder(config), batch)
    negatives = sample_log_uniform(12, NUM_TAGS, window.generator(local=False)) if num_negatives else None
    expected = sampled_softmax(
        functional.relu(output.projection),
        objective.head.classifier.weight,
        objective.head.classifier.bias,
        batch["tag_ids"],
        batch["tag_rows"],
        negatives,
    )
    torch.testing.assert_close(loss, expected)


def test_mlm_reads_the_masked_tokens_and_is_tied() -> None:
    config, batch = make_config(), make_batch()
    encoder, objective = make_encoder(config), MlmObjective(MlmConfig(), config)
    loss, output, _ = run(objective, encoder, batch)
    hidden = torch.stack([output.text_hidden[0, 2], output.text_hidden[0, 4]])
    logits = objective.head(hidden, encoder.word_embeddings())
    torch.testing.assert_close(loss, masked_token(logits, torch.tensor([10, 12])))
    loss.backward()
    gradient = encoder.word_embeddings().grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=1) > 0).all()  # every word, through the decoder
    assert not [name for name, _ in objective.named_parameters() if "embed" in name]


@pytest.mark.parametrize(("normalize", "temperature"), [(False, 1.0), (True, 0.07)])
def test_mfm_asks_for_the_frame_that_stood_there(normalize: bool, temperature: float) -> None:
    config, batch = make_config(), make_batch()
    objective = MfmObjective(MfmConfig(normalize=normalize, temperature=temperature), config)
    loss, output, _ = run(objective, make_encoder(config), batch)
    frames = batch["mfm_targets"]
    hidden = torch.stack([output.frame_hidden[0, 1], output.frame_hidden[2, 0], output.frame_hidden[2, 3]])
    expected = masked_frame(
        objective.head(hidden),
        torch.cat([frames[0, :3], frames[2]]),
        torch.tensor([1, 3, 6]),
        normalize=normalize,
        temperature=temperature,
    )
    torch.testing.assert_close(loss, expected)


def test_mfm_without_candidates_is_refused() -> None:
    config, batch = make_config(), make_batch()
    encoder, objective = make_encoder(config), MfmObjective(MfmConfig(), config)
    window = build_window([batch], [], step=0, seed=0, device="cpu")
    with pytest.raises(ValueError, match="no candidate frames"):
        objective(encoder(**encoder.inputs_of(batch)), batch, window, encoder)


@pytest.mark.parametrize(("layout", "kept"), [("cls_first", [2, 3]), ("text_cls", [2])])
def test_contrastive_sees_each_modality_alone_and_unmasked(layout: str, kept: list[int]) -> None:
    config, batch = make_config(layout), make_batch()
    batch["input_ids"][2] = torch.tensor([2, 3, 9, 8, 3, 0])  # two rows with both modalities
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    encoder, objective = make_encoder(config), ContrastiveObjective(ContrastiveConfig(), config)
    loss, _, _ = run(objective, encoder, batch)
    rows = [0, 2]
    ids = batch["input_ids"].clone()
    ids[0, 2] = 10  # what the mask token hides
    text = encoder(input_ids=ids[rows], attention_mask=batch["attention_mask"][rows]).text_hidden
    text_mask = batch["attention_mask"][rows][..., None]
    video = encoder(
        input_ids=torch.tensor([kept, kept]),
        attention_mask=torch.ones(2, len(kept), dtype=torch.int64),
        frame_features=batch["mfm_targets"][rows],
        frame_mask=batch["frame_mask"][rows],
        audio_features=batch["audio_features"][rows],
        audio_mask=batch["audio_mask"][rows],
    ).frame_hidden
    frame_mask = batch["frame_mask"][rows][..., None]
    expected = info_nce(
        objective.video_projection((video * frame_mask).sum(1) / frame_mask.sum(1)),
        objective.text_projection((text * text_mask).sum(1) / text_mask.sum(1)),
        temperature=0.07,
    )
    torch.testing.assert_close(loss, expected)


def test_vtm_sets_the_text_against_streams_of_another_video() -> None:
    config, batch = make_config(), make_batch()
    batch["input_ids"][2] = torch.tensor([2, 3, 9, 8, 3, 0])
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    encoder, objective = make_encoder(config), VtmObjective(VtmConfig(), config)
    assert objective.counts(batch).item() == 2.0
    loss, output, _ = run(objective, encoder, batch)
    swapped = [2, 1, 0]  # row 1 has no frames: the other two can only take each other's
    wrong = encoder(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        **{key: values[swapped] for key, values in stream_inputs(batch, config.streams or {}).items()},
    )
    expected = matching(
        objective.head(output.cls_hidden).squeeze(-1),
        objective.head(wrong.cls_hidden).squeeze(-1),
        torch.tensor([True, False, True]),
    )
    torch.testing.assert_close(loss, expected)


def test_vtm_never_takes_a_near_duplicate() -> None:
    config = make_config()
    objective = VtmObjective(VtmConfig(), config)
    batch = {
        "input_ids": torch.full((4, 5), 9),
        "attention_mask": torch.ones(4, 5, dtype=torch.int64),
        "frame_features": torch.randn(4, 2, FRAME_DIM, generator=torch.Generator().manual_seed(0)),
        "frame_mask": torch.ones(4, 2, dtype=torch.int64),
    }
    batch["frame_features"][1] = batch["frame_features"][0] + 0.001
    similarity, allowed = objective._allowed(batch)
    assert similarity[0, 1] > 0.99
    assert allowed.tolist() == [
        [False, False, True, True],
        [False, False, True, True],
        [True, True, False, True],
        [True, True, True, False],
    ]
    assert objective.counts(batch).item() == 4.0


def test_rows_without_text_do_not_move_the_mean_of_vtm() -> None:
    config = make_config()
    objective = VtmObjective(VtmConfig(), config)
    frames = torch.randn(4, 2, FRAME_DIM, generator=torch.Generator().manual_seed(0))
    frames[3] = 1000.0
    batch = {
        "input_ids": torch.tensor([[2, 3, 9, 9, 3]] * 3 + [[2, 3, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1]] * 3 + [[1, 1, 1, 0, 0]]),
        "frame_features": frames,
        "frame_mask": torch.ones(4, 2, dtype=torch.int64),
    }
    alone, _ = objective._allowed({key: values[:3] for key, values in batch.items()})
    similarity, allowed = objective._allowed(batch)
    torch.testing.assert_close(similarity[:3, :3], alone)
    assert not allowed[3].any()


def test_tags_start_at_how_rare_they_are() -> None:
    """5 tags a video of 1,000: each logit starts at log(5 / 995)."""
    bias = VtcObjective(VtcConfig(), make_config(), num_tags=1000).head.classifier.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((1000,), 0.005))


def test_partners_are_drawn_by_their_similarity() -> None:
    similarity = torch.tensor([0.0, 1.0, 0.0, 0.5]).repeat(2000, 1)[:, :4]
    square = torch.zeros(2000, 2000)
    square[:, :4] = similarity
    allowed = torch.zeros(2000, 2000, dtype=torch.bool)
    allowed[:, 1:4] = True
    allowed[7] = False
    partner, found = draw_partners(square, allowed, hardness=2.0, generator=torch.Generator().manual_seed(0))
    assert found.sum().item() == 1999
    assert partner[7].item() == 7
    # exp(2), exp(0), exp(1) over their sum.
    frequencies = torch.bincount(partner[found], minlength=4)[:4] / 1999
    torch.testing.assert_close(frequencies, torch.tensor([0.0, 0.6652, 0.0900, 0.2447]), atol=0.03, rtol=0)
    again, _ = draw_partners(square, allowed, hardness=2.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, partner)
    nobody, found = draw_partners(square[:0, :0], allowed[:0, :0], hardness=2.0, generator=torch.Generator())
    assert nobody.shape == found.shape == (0,)


def test_inputs_before_masking() -> None:
    batch = make_batch()
    assert clean_ids(batch)[0].tolist() == [2, 3, 10, 11, 12, 3]
    assert torch.equal(clean_frames(batch), batch["mfm_targets"])
    del batch["mlm_labels"], batch["mfm_targets"]
    assert torch.equal(clean_ids(batch), batch["input_ids"])
    assert torch.equal(clean_frames(batch), batch["frame_features"])


def test_rows_with_both_by_hand() -> None:
    batch = make_batch()
    assert rows_with_both(batch, make_config()).tolist() == [True, False, False]
    # Without the second token of cls_first the last row's three tokens hold one of text.
    assert rows_with_both(batch, make_config("text_cls")).tolist() == [True, False, True]


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vtc\.num_negatives"):
        VtcConfig(num_negatives=-1)
    with pytest.raises(ValueError, match=r"mfm\.temperature"):
        MfmConfig(temperature=0.0)
    with pytest.raises(ValueError, match=r"contrastive\.temperature"):
        ContrastiveConfig(temperature=-1.0)
    with pytest.raises(ValueError, match=r"vtm\.hardness"):
        VtmConfig(hardness=-1.0)
    text_only = make_config(streams={})
    for build in (
        lambda: MfmObjective(MfmConfig(), text_only),
        lambda: ContrastiveObjective(ContrastiveConfig(), text_only),
        lambda: VtmObjective(VtmConfig(), text_only),
    ):
        with pytest.raises(ValueError, match="stream 'frames'"):
            build()


def test_published_weights() -> None:
    assert VtcConfig().weight == pytest.approx(416.6667, abs=1e-3)
    assert MlmConfig().weight == pytest.approx(0.2667, abs=1e-4)
    assert MfmConfig().weight == pytest.approx(0.1111, abs=1e-4)
