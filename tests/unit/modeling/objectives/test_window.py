"""One optimizer step gives the same losses and gradients however its rows are cut, also on two ranks.

Run as a script (`test_window.py RANK FOLDER`) this file is one of the two ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.distributed import (
    all_reduce_sum,
    gather_integers,
    gather_rows,
    gather_rows_with_gradient,
    rank,
    world_size,
)
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.objectives.base import WindowContext, build_window
from vidsim.modeling.objectives.contrastive import ContrastiveConfig, ContrastiveObjective
from vidsim.modeling.objectives.inputs import frame_positions, mlm_positions
from vidsim.modeling.objectives.mfm import MfmConfig, MfmObjective
from vidsim.modeling.objectives.mlm import MlmConfig, MlmObjective
from vidsim.modeling.objectives.vtc import VtcConfig, VtcObjective

NUM_ROWS, NUM_TOKENS, NUM_FRAMES, FRAME_DIM, NUM_TAGS, VOCABULARY = 5, 7, 4, 6, 9, 30
TAGS = [[0, 4], [], [8], [1, 2, 3], [5]]  # row 1 has none and takes no part
FRAMES_OF = [4, 2, 0, 3, 1]
CUTS: dict[str, list[list[list[int]]]] = {
    # name: rank -> micro-batches -> rows
    "accumulated": [[[0], [1, 2]], [[3], [4]]],
    "uneven": [[[0, 1, 2, 3]], [[4]]],
}


def make_batch(rows: Sequence[int]) -> dict[str, Any]:
    """Cut rows out of one fixed batch of five."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (NUM_ROWS, NUM_TOKENS), generator=generator)
    ids[:, 0], ids[:, 1] = 2, 3
    attention_mask = torch.ones(NUM_ROWS, NUM_TOKENS, dtype=torch.int64)
    attention_mask[3, 5:] = 0
    labels = torch.full_like(ids, -100)
    for row, token in ((0, 2), (0, 4), (1, 3), (3, 2)):
        labels[row, token] = (ids[row, token] + 1) % VOCABULARY
    frames = torch.randn(NUM_ROWS, NUM_FRAMES, FRAME_DIM, generator=generator)
    frame_mask = (torch.arange(NUM_FRAMES) < torch.tensor(FRAMES_OF)[:, None]).long()
    mfm_labels = torch.zeros(NUM_ROWS, NUM_FRAMES, dtype=torch.bool)
    for row, frame in ((0, 1), (0, 3), (3, 0), (4, 0)):
        mfm_labels[row, frame] = True
    index = torch.tensor(rows)
    return {
        "input_ids": ids[index],
        "attention_mask": attention_mask[index],
        "mlm_labels": labels[index],
        "frame_features": frames.masked_fill(mfm_labels[..., None], 0.0)[index],
        "frame_mask": frame_mask[index],
        "mfm_labels": mfm_labels[index],
        "mfm_targets": frames[index],
        "tag_ids": torch.tensor([tag for row in rows for tag in TAGS[row]], dtype=torch.int64),
        "tag_rows": torch.tensor([at for at, row in enumerate(rows) for _ in TAGS[row]], dtype=torch.int64),
        "has_tags": torch.tensor([bool(TAGS[row]) for row in rows]),
    }


class Named(nn.Module):
    """An encoder with objectives, as pretraining wraps them."""

    def __init__(self, *, layout: str = "cls_first", contrastive: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = VidsimConfig.from_sizes(
            vocab_size=VOCABULARY,
            hidden_size=8,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
            dropout=0.0,
            embedding_dim=4,
            layout=layout,
            streams={"frames": {"dim": FRAME_DIM, "max_length": NUM_FRAMES}},
        )
        self.encoder = VideoTextEncoder(config).double()
        sampled = VtcObjective(
            VtcConfig(input="embedding", loss="sampled_softmax", num_negatives=20), config, num_tags=NUM_TAGS
        )
        sampled.name = "vtc_sampled"
        objectives = [
            VtcObjective(VtcConfig(), config, num_tags=NUM_TAGS),
            sampled,
            MlmObjective(MlmConfig(), config),
            MfmObjective(MfmConfig(), config),
        ]
        if contrastive:  # its negatives are those of the micro-batch, so only it may depend on the cut
            objectives.append(ContrastiveObjective(ContrastiveConfig(projection_dim=3), config))
        self.objectives = nn.ModuleList(objectives).double()

    def step(self, cut: Sequence[Sequence[int]], **changes: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Losses summed over the micro-batches, and the gradient of their sum, all as float64 arrays."""
        batches = [make_batch(rows) for rows in cut]
        for change in changes.values():
            for batch in batches:
                change(batch)
        window = build_window(batches, self.objectives, step=3, seed=5, device="cpu")
        sums: dict[str, Any] = {}
        for index, batch in enumerate(batches):
            output = self.encoder(**self.encoder.inputs_of(batch))
            losses = {
                objective.name: objective(output, batch, window.for_micro_batch(index), self.encoder)
                for objective in self.objectives
            }
            torch.stack(list(losses.values())).sum().backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.detach().numpy()
        for name, parameter in self.named_parameters():
            if parameter.grad is not None:
                sums[f"gradient of {name}"] = parameter.grad.numpy()
        return sums


def assert_equal(one: dict[str, Any], other: dict[str, Any], *, without: str = "") -> None:
    assert set(one) == set(other)
    for name in one:
        if not without or without not in name:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-5, atol=1e-7, err_msg=name)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return Named().step([range(NUM_ROWS)])


@pytest.fixture(scope="module")
def whole_without_contrastive() -> dict[str, Any]:
    return Named(contrastive=False).step([range(NUM_ROWS)])


def test_losses_are_those_of_known_probabilities(whole: dict[str, Any]) -> None:
    # Fresh small weights: every choice is near uniform, so a loss is near the log of the number of choices.
    assert whole["vtc"] == pytest.approx(np.log(2), rel=0.1)
    assert whole["mlm"] == pytest.approx(np.log(VOCABULARY), rel=0.1)
    assert whole["mfm"] == pytest.approx(np.log(sum(FRAMES_OF)), rel=0.2)


@pytest.mark.parametrize("cut", [[[0], [1], [2], [3], [4]], [[0, 1, 2], [3, 4]]])
def test_accumulation_does_not_change_losses_or_gradients(
    cut: list[list[int]], whole_without_contrastive: dict[str, Any]
) -> None:
    assert_equal(Named(contrastive=False).step(cut), whole_without_contrastive)


def test_order_of_rows_does_not_matter(whole: dict[str, Any]) -> None:
    assert_equal(Named().step([[3, 1, 4, 0, 2]]), whole)


def test_positions_from_the_collator_are_used(whole: dict[str, Any]) -> None:
    def add(batch: dict[str, Any]) -> None:
        batch["mlm_positions"] = torch.nonzero((batch["mlm_labels"] != -100).flatten()).flatten()
        batch["mfm_positions"] = torch.nonzero(batch["mfm_labels"].flatten()).flatten()
        batch["frame_positions"] = torch.nonzero(batch["frame_mask"].flatten()).flatten()
        del batch["mfm_labels"]

    assert_equal(Named().step([range(NUM_ROWS)], add=add), whole)


def test_what_stands_at_padded_places_does_not_matter(whole: dict[str, Any]) -> None:
    def spoil(batch: dict[str, Any]) -> None:
        padded = batch["frame_mask"] == 0
        batch["frame_features"] = batch["frame_features"].masked_fill(padded[..., None], 7.0)
        batch["mfm_targets"] = batch["mfm_targets"].masked_fill(padded[..., None], -9.0)
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 4)

    spoiled = Named().step([range(NUM_ROWS)], spoil=spoil)
    assert_equal(spoiled, whole, without="word_embeddings")


def test_a_step_without_anything_to_predict_is_zero_with_gradient() -> None:
    def empty(batch: dict[str, Any]) -> None:
        batch["mlm_labels"].fill_(-100)
        batch["mfm_labels"].fill_(False)
        batch["has_tags"].fill_(False)
        batch["frame_mask"].fill_(0)

    module = Named()
    results = module.step([range(NUM_ROWS)], empty=empty)
    assert [results[objective.name] for objective in module.objectives] == [0.0] * 5
    for name, parameter in module.objectives.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() == 0, name


def test_a_batch_with_no_frame_positions_at_all() -> None:
    def cut_off(batch: dict[str, Any]) -> None:
        for key in ("frame_features", "frame_mask", "mfm_labels", "mfm_targets"):
            batch[key] = batch[key][:, :0]

    results = Named().step([range(NUM_ROWS)], cut_off=cut_off)
    assert results["mfm"] == 0.0
    assert results["contrastive"] == 0.0
    assert results["mlm"] > 0


def test_sampled_negatives_depend_on_seed_and_step_only() -> None:
    def window(**changes: int) -> WindowContext:
        arguments = {"step": 3, "seed": 5, **changes}
        return build_window([make_batch([0]), make_batch([1])], [], device="cpu", **arguments)

    def draw(context: WindowContext, *, local: bool) -> list[float]:
        return torch.rand(3, generator=context.generator(local=local)).tolist()

    first = draw(window(), local=False)
    assert draw(window().for_micro_batch(1), local=False) == first
    assert draw(window(step=4), local=False) != first
    assert draw(window(seed=6), local=False) != first
    assert draw(window().for_micro_batch(1), local=True) != draw(window().for_micro_batch(0), local=True)


def test_window_counts_and_candidates_by_hand() -> None:
    module = Named()
    batches = [make_batch([0, 1]), make_batch([2, 3, 4])]
    window = build_window(batches, module.objectives, step=0, seed=0, device="cpu")
    counts = {name: count.item() for name, count in window.denominators.items()}
    assert counts == {"vtc": 4, "vtc_sampled": 7, "mlm": 4, "mfm": 4, "contrastive": 4}
    assert window.num_rows == [[2, 3]]
    assert window.frame_offsets == [0, 6]
    assert window.frame_candidates is not None
    assert torch.equal(window.frame_candidates[6:9], batches[1]["mfm_targets"][1, :3])
    assert len(window.frame_candidates) == 10


def test_misuse_is_refused() -> None:
    module = Named()
    with pytest.raises(ValueError, match="at least one micro-batch"):
        build_window([], module.objectives, step=0, seed=0, device="cpu")
    with pytest.raises(ValueError, match="two objectives of one name"):
        build_window([make_batch([0])], [*module.objectives, module.objectives[0]], step=0, seed=0, device="cpu")
    window = build_window([make_batch([0])], [], step=0, seed=0, device="cpu")
    with pytest.raises(ValueError, match="no number 1"):
        window.for_micro_batch(1)
    batch = make_batch([0, 1])
    with pytest.raises(ValueError, match="an objective needs frames"):
        build_window([{"input_ids": batch["input_ids"]}], [module.objectives[3]], step=0, seed=0, device="cpu")
    batch["mfm_labels"][1, 3] = True  # row 1 has 2 frames
    window = build_window([batch], module.objectives, step=0, seed=0, device="cpu")
    output = module.encoder(**module.encoder.inputs_of(batch))
    with pytest.raises(ValueError, match="not among the valid frames"):
        module.objectives[3](output, batch, window, module.encoder)


def test_positions_found_in_the_batch_by_hand() -> None:
    batch = make_batch([1, 3])
    assert mlm_positions(batch).tolist() == [3, NUM_TOKENS + 2]
    assert frame_positions(batch).tolist() == [0, 1, 4, 5, 6]


# ---- two ranks ----


def gathers() -> Iterator[tuple[str, Tensor]]:
    """Results of the collectives on this rank; rank 0 has 2 rows, rank 1 has 1."""
    rows = torch.arange(2.0 - rank())[:, None] + 10 * rank()
    yield "sum", all_reduce_sum(rows.sum())
    yield "integers", torch.tensor(gather_integers([rank(), 7], "cpu"))
    yield "rows", gather_rows(rows)
    rows.requires_grad_()
    gathered = gather_rows_with_gradient(rows, [2, 1])
    # This rank's loss weighs the gathered rows by 1, 2, 3 times (rank + 1).
    (gathered.flatten() * torch.tensor([1.0, 2.0, 3.0]) * (rank() + 1)).sum().backward()
    yield "gathered", gathered.detach()
    assert rows.grad is not None
    yield "gradient", rows.grad
    with pytest.raises(ValueError, match="do not fit 2 ranks"):
        gather_rows(rows, [5, 5])
    with pytest.raises(ValueError, match="another rank has not"):
        build_window([make_batch([0])] * (rank() + 1), [], step=0, seed=0, device="cpu")


def run_rank(own: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=own, world_size=2)
    assert (rank(), world_size()) == (own, 2)
    results = {f"gather {name}": tensor.numpy() for name, tensor in gathers()}
    for name, cuts in CUTS.items():
        results |= {
            f"{name} {key}": value for key, value in Named(contrastive=name == "uneven").step(cuts[own]).items()
        }
    np.savez(folder / f"rank{own}.npz", **results)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(own), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in range(2)
    ]
    try:
        logs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return [dict(np.load(folder / f"rank{own}.npz", allow_pickle=False)) for own in range(2)]


@pytest.mark.multi_process
def test_collectives_by_hand(ranks: list[dict[str, np.ndarray]]) -> None:
    for own, result in enumerate(ranks):
        assert result["gather sum"] == 11.0
        assert result["gather integers"].tolist() == [[0, 7], [1, 7]]
        assert result["gather rows"].tolist() == [[0.0], [1.0], [10.0]]
        assert result["gather gathered"].tolist() == [[0.0], [1.0], [10.0]]
        # Summed over the ranks' losses: (1 + 2) times the weight of the row.
        assert result["gather gradient"].tolist() == ([[3.0], [6.0]], [[9.0]])[own]


@pytest.mark.multi_process
@pytest.mark.parametrize("cut", sorted(CUTS))
def test_two_ranks_add_up_to_one_process(
    cut: str,
    ranks: list[dict[str, np.ndarray]],
    whole: dict[str, Any],
    whole_without_contrastive: dict[str, Any],
) -> None:
    names = [key.removeprefix(f"{cut} ") for key in ranks[0] if key.startswith(f"{cut} ")]
    sums = {name: ranks[0][f"{cut} {name}"] + ranks[1][f"{cut} {name}"] for name in names}
    # With one micro-batch a rank the contrastive negatives, too, are all five rows.
    assert_equal(sums, whole if cut == "uneven" else whole_without_contrastive)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
