"""What is watched while pretraining: losses on held-out rows and the honest probe."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator

from vidsim.data.arrow import Videos
from vidsim.data.collators import PretrainCollator, Processor, encode_rows, to_device
from vidsim.data.pairs import Pairs
from vidsim.engine.gather import map_rows
from vidsim.modeling.metrics import spearman
from vidsim.pretrain.module import PretrainModule

_EVALUATION_EPOCH = -1  # the masks of an epoch that training never reaches, so they are the same at every evaluation


def held_out_losses(
    module: PretrainModule,
    accelerator: Accelerator,
    videos: Videos,
    rows: np.ndarray,
    collator: PretrainCollator,
    batch_size: int,
) -> dict[str, float]:
    """Mean of each objective's loss over rows that are not trained on. Collective.

    A chunk of rows is one window, split over the ranks: the frames that an MFM prediction is compared with are those of
    the chunk, and the figures do not depend on the number of processes (except VTM's: its partners are drawn within a
    rank's part).

    Args:
        module: In eval mode.
        accelerator: Of the run.
        videos: All rows.
        rows: Row numbers, int64 [n], at least one for each process.
        collator: Of the run; masks are fixed.
        batch_size: Rows a chunk at least, where there are as many; a chunk has less than twice as many.

    Returns:
        `held_out/<objective>` and their weighted sum `held_out/loss`; means over chunks, weighted by their rows.
    """
    totals: dict[str, torch.Tensor] = {}
    for chunk in np.array_split(rows, max(1, len(rows) // batch_size)):
        mine = chunk[accelerator.process_index :: accelerator.num_processes]
        batch = to_device(
            collator([{**videos[int(row)], "epoch": _EVALUATION_EPOCH} for row in mine]), accelerator.device
        )
        (window,) = module.windows([batch], 0)
        with accelerator.autocast():
            losses = module(batch, window)
        for name, loss in losses.items():
            part = loss.float() * (len(chunk) / len(rows))
            totals[name] = totals[name] + part if name in totals else part
    values = accelerator.reduce(torch.stack(list(totals.values())), reduction="sum").tolist()
    result = {f"held_out/{name}": value for name, value in zip(totals, values, strict=True)}
    result["held_out/loss"] = sum(module.weights[name] * value for name, value in zip(totals, values, strict=True))
    return result


def probe_spearman(
    module: PretrainModule,
    accelerator: Accelerator,
    videos: Videos,
    pairs: Pairs,
    processor: Processor,
    batch_size: int,
) -> dict[str, float]:
    """Spearman between labels and the cosine of masked-mean hidden states. Collective.

    Args:
        module: In eval mode.
        accelerator: Of the run.
        videos: Hold all videos of the pairs.
        pairs: Labelled pairs.
        processor: Of the run.
        batch_size: Videos a batch.
    """
    ids = list(dict.fromkeys([*pairs.id1, *pairs.id2]))
    rows = videos.rows_of(ids)

    def encode(positions: np.ndarray) -> torch.Tensor:
        batch = encode_rows([videos[int(row)] for row in rows[positions]], processor)
        output = module.encode(to_device(batch, accelerator.device))
        return module.encoder.hidden_mean(output)

    width = module.encoder.config.text_config.hidden_size
    means = map_rows(encode, len(ids), width, batch_size=batch_size, accelerator=accelerator)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    position = {video_id: index for index, video_id in enumerate(ids)}
    left = means[[position[name] for name in pairs.id1]]
    right = means[[position[name] for name in pairs.id2]]
    return {"probe/spearman": spearman((left * right).sum(1), pairs.score)}
