"""What every pretraining objective offers, and what it is told about the optimizer step it takes part in.

An optimizer step consists of micro-batches on every rank: the **window**. `build_window` counts each
objective's items over the whole window and collects the frames that masked frame modelling chooses among.
Every objective then returns `sum over its local items / items of the window`, so that adding up over
micro-batches and ranks gives the mean over the global batch, however it was cut.

Legend: B rows, T tokens, F frames, D width of a frame, H hidden width, N valid frames of the window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..distributed import all_reduce_sum, gather_integers, gather_rows, rank
from .inputs import Batch, valid_frames

if TYPE_CHECKING:
    from ..encoder import VidsimOutput


class Encoder(Protocol):
    """What an objective may ask of the encoder beside the output it was given."""

    def __call__(self, **inputs: Any) -> VidsimOutput:
        """Encode `input_ids`, `attention_mask` and stream tensors."""

    def word_embeddings(self) -> Tensor:
        """The table [V, W] that the masked-token head is tied to."""


@dataclass(frozen=True, kw_only=True)
class WindowContext:
    """What one micro-batch must know about its optimizer step.

    Attributes:
        denominators: Objective name -> float scalar, its items over all ranks and micro-batches of the
            window.
        frame_candidates: float [N, D], the valid frames before masking of the whole window, by rank,
            micro-batch, row and time; None if no objective needs them.
        num_rows: Rows of each rank's micro-batches, `num_rows[rank][micro_batch]`.
        frame_offsets: Index of this rank's micro-batches' first frame among the candidates, by micro-batch.
        step: Optimizer step.
        seed: Of the run.
        micro_batch: Which micro-batch of this rank the context is for; see `for_micro_batch`.
    """

    denominators: Mapping[str, Tensor]
    frame_candidates: Tensor | None
    num_rows: Sequence[Sequence[int]]
    frame_offsets: Sequence[int]
    step: int
    seed: int
    micro_batch: int = 0

    def for_micro_batch(self, index: int) -> WindowContext:
        """The context for this rank's micro-batch `index`, 0-based.

        Raises:
            ValueError: The window has no such micro-batch.
        """
        if not 0 <= index < len(self.frame_offsets):
            raise ValueError(f"the window has {len(self.frame_offsets)} micro-batches, there is no number {index}")
        return dataclasses.replace(self, micro_batch=index)

    def generator(self, *, local: bool) -> torch.Generator:
        """A CPU generator seeded by (seed, step) only, or, if local, by rank and micro-batch as well."""
        entropy = [self.seed, self.step]
        if local:
            entropy += [rank(), self.micro_batch]
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))


class Objective(Protocol):
    """A head with its loss: an `nn.Module` built from (config, encoder_config, sizes).

    Attributes:
        name: Key of its loss and of its denominator.
        needs_frame_candidates: Whether `WindowContext.frame_candidates` must be filled.
    """

    name: str
    needs_frame_candidates: bool

    def counts(self, batch: Batch) -> Tensor | float:
        """Items of this micro-batch that the loss is a mean over; does not depend on the model."""

    def __call__(self, output: VidsimOutput, batch: Batch, window: WindowContext, encoder: Encoder) -> Tensor:
        """Sum of the loss over the local items / `window.denominators[name]`: float scalar."""


def build_window(
    batches: Sequence[Batch],
    objectives: Iterable[Objective],
    *,
    step: int,
    seed: int,
    device: torch.device | str,
) -> WindowContext:
    """Count the items and collect the candidate frames of one optimizer step. Collective: call on every rank.

    Without a process group nothing waits for the device. With one, the row and frame numbers of the ranks are
    read back once per optimizer step.

    Args:
        batches: This rank's micro-batches of the step, in order; the same number on every rank.
        objectives: The objectives that will be called, the same on every rank and in the same order.
        step: Optimizer step.
        seed: Of the run, the same on every rank.
        device: Where losses are computed.

    Raises:
        ValueError: No micro-batches; ranks with different numbers of them; or two objectives of one name.
    """
    objectives = list(objectives)
    if not batches:
        raise ValueError("a window needs at least one micro-batch")
    names = [objective.name for objective in objectives]
    if len(set(names)) != len(names):
        raise ValueError(f"two objectives of one name: {names}")
    if any(ranks != [len(batches)] for ranks in gather_integers([len(batches)], device)):
        raise ValueError(f"rank {rank()} has {len(batches)} micro-batches in this step, another rank has not")

    frames = None
    num_frames = [0] * len(batches)
    if any(objective.needs_frame_candidates for objective in objectives):
        frames = [valid_frames(batch).to(device) for batch in batches]
        num_frames = [len(part) for part in frames]
    sizes = gather_integers([*(batch["input_ids"].shape[0] for batch in batches), *num_frames], device)
    frames_of = [rank_sizes[len(batches) :] for rank_sizes in sizes]
    before = sum(sum(numbers) for numbers in frames_of[: rank()])
    return WindowContext(
        denominators=_denominators(batches, objectives, device),
        frame_candidates=None
        if frames is None
        else gather_rows(torch.cat(frames), [sum(numbers) for numbers in frames_of]),
        num_rows=[rank_sizes[: len(batches)] for rank_sizes in sizes],
        frame_offsets=[before + sum(num_frames[:index]) for index in range(len(batches))],
        step=step,
        seed=seed,
    )


def _denominators(
    batches: Sequence[Batch], objectives: Sequence[Objective], device: torch.device | str
) -> dict[str, Tensor]:
    if not objectives:
        return {}
    counts = [[_on_device(objective.counts(batch), device) for batch in batches] for objective in objectives]
    totals = all_reduce_sum(torch.stack([torch.stack(parts).sum() for parts in counts]))
    return {objective.name: total for objective, total in zip(objectives, totals, strict=True)}


def _on_device(count: Tensor | float, device: torch.device | str) -> Tensor:
    if isinstance(count, Tensor):
        return count.to(device, torch.float32)
    return torch.full((), count, dtype=torch.float32, device=device)  # a fill; a copy would wait for the device
