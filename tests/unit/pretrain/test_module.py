from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vidsim.data.masking import MaskingConfig
from vidsim.modeling.objectives.contrastive import ContrastiveConfig
from vidsim.modeling.objectives.mfm import MfmConfig
from vidsim.modeling.objectives.mlm import MlmConfig
from vidsim.modeling.objectives.vtc import VtcConfig
from vidsim.modeling.objectives.vtm import VtmConfig

SetupOf = Callable[..., Any]
ALL: dict[str, Any] = {
    "vtc": VtcConfig(weight=2.0),
    "mlm": MlmConfig(weight=3.0),
    "mfm": MfmConfig(weight=5.0),
    "vtm": VtmConfig(weight=7.0),
    "contrastive": ContrastiveConfig(weight=11.0, projection_dim=4),
}
PUBLISHED = {name: ALL[name] for name in ("vtc", "mlm", "mfm")}
NOTHING_MASKED = MaskingConfig(mlm_probability=0.0, mfm_probability=0.0)
ROWS = range(12)


def gradients(module: torch.nn.Module, losses: dict[str, torch.Tensor]) -> list[str]:
    """Backward; the parameters that have no gradient."""
    module.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("layout", ["cls_first", "text_cls"])
@pytest.mark.parametrize("names", [*[[name] for name in ALL], list(PUBLISHED), list(ALL)], ids="+".join)
def test_every_parameter_gets_a_gradient(setup: SetupOf, names: list[str], layout: str) -> None:
    """With several processes, DistributedDataParallel refuses a parameter without; also in a batch without frames."""
    made = setup(objectives={name: ALL[name] for name in names}, layout=layout, pooling="attention", dropout=0.1)
    assert made.module.weights == {name: ALL[name].weight for name in names}
    for rows in (ROWS, [4, 9, 14], [3, 10, 17]):
        losses = made.losses(made.batch(rows))
        assert list(losses) == names
        assert all(loss.dtype == torch.float32 and loss.ndim == 0 and loss.isfinite() for loss in losses.values())
        assert gradients(made.module, losses) == []


@pytest.mark.parametrize("pooling", ["mean", "first", "mean_unmasked", "attention_unmasked"])
def test_every_pooling_gets_a_gradient(setup: SetupOf, pooling: str) -> None:
    made = setup(objectives={"vtc": VtcConfig(input="embedding"), "mlm": MlmConfig()}, pooling=pooling)
    assert gradients(made.module, made.losses(made.batch(ROWS))) == []


def test_what_is_not_trained_has_no_head(setup: SetupOf) -> None:
    made = setup(objectives={"mlm": MlmConfig()})
    assert set(made.module.objectives) == {"mlm"}
    assert all(name.startswith(("encoder.", "objectives.mlm.")) for name, _ in made.module.named_parameters())


@pytest.mark.parametrize("layout", ["cls_first", "text_cls"])
def test_micro_batches_add_up(setup: SetupOf, layout: str) -> None:
    """The published losses are means over the whole step, whatever a micro-batch holds of masked items and tags."""
    made = setup(objectives=PUBLISHED, layout=layout)
    whole = made.losses(made.batch(ROWS))
    split = made.losses(made.batch(range(7)), made.batch([7]), made.batch(range(8, 12)))
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)
    means = [made.losses(made.batch(rows))["mlm"] for rows in (range(7), range(8, 12))]
    assert not torch.allclose(torch.stack(means).mean(), whole["mlm"], rtol=1e-4)


def test_nothing_masked_is_zero_and_not_nan(setup: SetupOf) -> None:
    made = setup(objectives=PUBLISHED, masking=NOTHING_MASKED)
    losses = made.losses(made.batch(ROWS))
    assert (losses["mlm"].item(), losses["mfm"].item()) == (0.0, 0.0)
    assert losses["vtc"] > 0
    assert gradients(made.module, losses) == []


def test_rows_without_tags_take_no_part_in_vtc(setup: SetupOf) -> None:
    """As the competition's test videos: they join MLM and MFM only."""
    made = setup(objectives=PUBLISHED)
    tagged, untagged = [0, 1, 3], [2, 5, 8]
    with_others = made.losses(made.batch([*tagged, *untagged]))
    alone = made.losses(made.batch(tagged))
    torch.testing.assert_close(with_others["vtc"], alone["vtc"])
    assert not torch.allclose(with_others["mlm"], alone["mlm"])
    nobody = made.losses(made.batch(untagged))
    assert nobody["vtc"].item() == 0.0
    assert nobody["mlm"] > 0


def test_padding_does_not_matter(setup: SetupOf) -> None:
    """Neither ids nor frames at padded positions, with all five objectives."""
    made = setup(objectives=ALL)
    batch = made.batch(ROWS)
    other = dict(batch)
    padded_text, padded_frames = batch["attention_mask"] == 0, batch["frame_mask"] == 0
    assert padded_text.any()
    assert padded_frames.any()
    other["input_ids"] = batch["input_ids"].masked_fill(padded_text, 7)
    for key in ("frame_features", "mfm_targets"):
        other[key] = batch[key].masked_fill(padded_frames[..., None], 50.0)
    torch.testing.assert_close(made.losses(other), made.losses(batch), rtol=1e-5, atol=1e-6)


def test_what_was_masked_is_seen_by_its_own_loss_only(setup: SetupOf) -> None:
    hidden = MaskingConfig(mlm_probability=0.5, mlm_mask_fraction=1.0, mlm_random_fraction=0.0, mfm_zero_fraction=1.0)
    made = setup(objectives=PUBLISHED, masking=hidden)
    batch = made.batch(ROWS)
    assert batch["mfm_labels"].any()
    before = made.losses(batch)
    other = {**batch, "mfm_targets": batch["mfm_targets"] + batch["mfm_labels"][..., None]}
    changed = made.losses(other)
    assert torch.equal(changed["vtc"], before["vtc"])
    assert torch.equal(changed["mlm"], before["mlm"])
    assert not torch.equal(changed["mfm"], before["mfm"])
    labels = batch["mlm_labels"].masked_fill(batch["mlm_labels"] != -100, 6)
    changed = made.losses({**batch, "mlm_labels": labels})
    assert torch.equal(changed["vtc"], before["vtc"])
    assert torch.equal(changed["mfm"], before["mfm"])
    assert not torch.equal(changed["mlm"], before["mlm"])


def test_candidates_of_mfm_are_the_frames_of_all_micro_batches(setup: SetupOf) -> None:
    """An untrained head gives every candidate about the same: the loss is near the log of their number."""
    made = setup(objectives={"mfm": MfmConfig()})
    batches = [made.batch(range(6)), made.batch(range(6, 12))]
    num_frames = sum(int(batch["frame_mask"].sum()) for batch in batches)
    (window, _) = made.module.windows(batches, 0)
    assert window.frame_candidates.shape == (num_frames, 6)
    assert made.losses(*batches)["mfm"].item() == pytest.approx(torch.tensor(num_frames).log().item(), abs=0.3)


def test_negatives_follow_the_step(setup: SetupOf) -> None:
    sampled = VtcConfig(loss="sampled_softmax", num_negatives=3)
    made = setup(objectives={"vtc": sampled, "vtm": VtmConfig()})
    batch = made.batch(ROWS)
    torch.testing.assert_close(made.losses(batch, step=4), made.losses(batch, step=4), rtol=0, atol=0)
    values = [made.losses(batch, step=step) for step in range(4)]
    for name in ("vtc", "vtm"):
        assert len({round(value[name].item(), 6) for value in values}) > 1


def test_losses_are_balanced_on_the_last_layer(setup: SetupOf) -> None:
    module = setup(objectives=PUBLISHED).module
    shared = {id(parameter) for parameter in module.shared_parameters()}
    names = {name for name, parameter in module.named_parameters() if id(parameter) in shared}
    assert len(names) == 16
    assert all(name.startswith("encoder.text.encoder.layer.1.") for name in names)


def test_training_lowers_the_loss(setup: SetupOf) -> None:
    made = setup(objectives=ALL)
    batch = made.batch(ROWS)
    optimizer = torch.optim.Adam(made.module.parameters(), lr=1e-2)
    totals = []
    for _ in range(5):
        losses = made.losses(batch)
        totals.append(torch.stack(list(losses.values())).sum().item())
        assert gradients(made.module, losses) == []
        optimizer.step()
    assert totals[-1] < 0.9 * totals[0]
