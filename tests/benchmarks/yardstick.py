"""The published way of computing one pretraining step and one embedding: what `bench.py` measures against.

Written from the description of the winning AIAC 2021 system (arXiv 2111.01677), with what it costs:

- every row is 68 positions: [CLS], 32 frames, 35 text ids, whatever the video has; float32; attention as two products
  with a softmax between them;
- masks are drawn on the host in the step: ids and frames come back from the device, special tokens are found by a loop;
- the masked-token head scores all 35 text positions against 21,128 words, by a decoder of its own;
- masked frames are told from all others by the full matrix of all B * 32 frame positions, padding pushed down by -1e8;
- tags are a dense 0/1 matrix [B, 10000];
- the second word-embedding table, which nothing reads, is there;
- AdamW walks from tensor to tensor (the old Hugging Face one did), and gradients are zeroed, not dropped.

The weights are copies of a `PretrainModule`'s, so that for the same masks and without dropout both have the same loss.

Legend: B videos, T = 36 text ids, F = 32 frames, D width of a frame, K tags, V words.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidsim.pretrain.module import PretrainModule

NUM_FRAMES = 32
NUM_TEXT_IDS = 36
WEIGHTS = {"vtc": 1250 / 3, "mlm": 1 / 3.75, "mfm": 1 / 9}
_IGNORE = -100
_FAR_BELOW = -1e8


@dataclass(frozen=True)
class PaddedBatch:
    """A batch at the fixed lengths.

    Attributes:
        input_ids: int64 [B, T].
        attention_mask: int64 [B, T].
        frames: float32 [B, F, D], zero where there is none.
        frame_mask: int64 [B, F].
        tags: float32 [B, K], 0 or 1.
        clean_frames: float32 [B, F, D] before masking; None before masks are drawn, like the next two.
        mlm_labels: int64 [B, T], -100 where nothing is predicted.
        mfm_labels: bool [B, F], True where the frame is predicted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    frames: Tensor
    frame_mask: Tensor
    tags: Tensor
    clean_frames: Tensor | None = None
    mlm_labels: Tensor | None = None
    mfm_labels: Tensor | None = None

    def to(self, device: torch.device) -> PaddedBatch:
        """The batch on a device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items() if value is not None}
        return replace(self, **moved)


def pad_batch(batch: dict[str, Any], num_tags: int) -> PaddedBatch:
    """A collator's batch at the fixed lengths; its masks, if it has any, come along."""

    def padded(name: str, length: int, value: float) -> Tensor | None:
        if name not in batch:
            return None
        tensor = cast(Tensor, batch[name])
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        missing = [0, 0] * (tensor.ndim - 2) + [0, length - tensor.shape[1]]
        return F.pad(tensor, missing, value=value)

    tags = torch.zeros(len(batch["row_ids"]), num_tags)
    tags[batch["tag_rows"], batch["tag_ids"]] = 1.0
    return PaddedBatch(
        input_ids=cast(Tensor, padded("input_ids", NUM_TEXT_IDS, 0)),
        attention_mask=cast(Tensor, padded("attention_mask", NUM_TEXT_IDS, 0)),
        frames=cast(Tensor, padded("frame_features", NUM_FRAMES, 0)),
        frame_mask=cast(Tensor, padded("frame_mask", NUM_FRAMES, 0)),
        tags=tags,
        clean_frames=padded("mfm_targets", NUM_FRAMES, 0),
        mlm_labels=padded("mlm_labels", NUM_TEXT_IDS, _IGNORE),
        mfm_labels=padded("mfm_labels", NUM_FRAMES, False),
    )


def mask_on_host(batch: PaddedBatch, special_ids: set[int], mask_id: int, vocab_size: int) -> PaddedBatch:
    """Draw the masks of a batch on the CPU and bring the result back to where it was (15 %, 80 / 10 / 10).

    Of the frames drawn only the 90 % that become zeros carry a loss, as in the published code.
    """
    device = batch.input_ids.device
    ids = batch.input_ids.cpu().clone()
    special = torch.tensor([[int(token in special_ids) for token in row] for row in ids.tolist()], dtype=torch.bool)
    chosen = torch.bernoulli(torch.full(ids.shape, 0.15).masked_fill(special, 0.0)).bool()
    labels = ids.masked_fill(~chosen, _IGNORE)
    hidden = torch.bernoulli(torch.full(ids.shape, 0.8)).bool() & chosen
    ids[hidden] = mask_id
    swapped = torch.bernoulli(torch.full(ids.shape, 0.5)).bool() & chosen & ~hidden
    ids[swapped] = torch.randint(vocab_size, ids.shape)[swapped]

    frames = batch.frames.cpu().clone()
    drawn = torch.bernoulli(0.15 * batch.frame_mask.cpu().float()).bool()
    zeroed = torch.bernoulli(torch.full(drawn.shape, 0.9)).bool() & drawn
    frames[zeroed] = 0.0
    return replace(
        batch,
        input_ids=ids.to(device),
        frames=frames.to(device),
        clean_frames=batch.frames,
        mlm_labels=labels.to(device),
        mfm_labels=zeroed.to(device),
    )


class Yardstick(nn.Module):
    """Encoder and heads with the weights of a module, computed the published way.

    Args:
        module: With the objectives vtc (from [CLS]), mlm and mfm, layout `cls_first`, 32 frames, 33 title tokens.
    """

    def __init__(self, module: PretrainModule) -> None:
        """Copy the weights."""
        super().__init__()
        source = cast(Any, module)
        encoder = source.encoder
        self.text = copy.deepcopy(encoder.text)
        self.text.set_attn_implementation("eager")
        words = encoder.word_embeddings()
        self.second_words = nn.Embedding(*words.shape)  # of the frames' embedding layer; nothing reads it
        self.stream = copy.deepcopy(encoder.streams["frames"])
        self.projection = copy.deepcopy(encoder.embedding_head.projection)
        mlm, mfm, vtc = (source.objectives[name].head for name in ("mlm", "mfm", "vtc"))
        self.mlm_head = _head(mlm.dense, mlm.norm, _linear(words, mlm.bias))
        self.mfm_head = _head(mfm.dense, mfm.norm, mfm.decoder)
        self.tag_head = copy.deepcopy(vtc.classifier)

    def encode(self, batch: PaddedBatch) -> Tensor:
        """Hidden states float [B, 68, H]: [CLS], frames, rest of the text."""
        words = self.text.get_input_embeddings()(batch.input_ids)
        stream = self.stream
        frames = stream.norm(stream.projection(batch.frames) + stream.position.weight + stream.modality.weight)
        text = torch.arange(NUM_TEXT_IDS, device=words.device)
        positions = torch.cat([text[:1], torch.arange(NUM_FRAMES, device=words.device), text[1:]])
        mask = torch.cat([batch.attention_mask[:, :1], batch.frame_mask, batch.attention_mask[:, 1:]], dim=1)
        return self.text(
            inputs_embeds=torch.cat([words[:, :1], frames.to(words.dtype), words[:, 1:]], dim=1),
            attention_mask=mask,
            position_ids=positions.unsqueeze(0),
        )[0]

    def embed(self, batch: PaddedBatch) -> Tensor:
        """Embedding float32 [B, 256] of length 1, from the mean over all 68 positions."""
        return F.normalize(self.projection(self.encode(batch).mean(dim=1)), dim=-1)

    def forward(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """Losses `vtc`, `mlm`, `mfm` of a masked batch, float scalars."""
        assert batch.mlm_labels is not None
        hidden = self.encode(batch)
        tags = self.tag_head(F.relu(hidden[:, 0]))
        words = self.mlm_head(hidden[:, 1 + NUM_FRAMES :])
        return {
            "vtc": F.binary_cross_entropy_with_logits(tags.float(), batch.tags),
            "mlm": F.cross_entropy(
                words.flatten(0, 1).float(), batch.mlm_labels[:, 1:].flatten(), ignore_index=_IGNORE
            ),
            "mfm": self._frame_loss(hidden[:, 1 : 1 + NUM_FRAMES], batch),
        }

    def _frame_loss(self, hidden: Tensor, batch: PaddedBatch) -> Tensor:
        assert batch.clean_frames is not None
        assert batch.mfm_labels is not None
        predicted = self.mfm_head(hidden).flatten(0, 1)  # [B * F, D]
        products = predicted @ batch.clean_frames.flatten(0, 1).to(predicted).T
        valid = batch.frame_mask.flatten().float()
        scores = products.float() + (1.0 - valid[:, None] * valid[None, :]) * _FAR_BELOW
        loss = -F.log_softmax(scores, dim=-1).diagonal()
        return loss.masked_select(batch.mfm_labels.flatten()).mean()


def total(losses: dict[str, Tensor]) -> Tensor:
    """The weighted sum that is trained on."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def make_optimizer(model: Yardstick) -> torch.optim.AdamW:
    """AdamW as published: 5e-5, the tag head 5e-4, decay .01 but for biases and LayerNorms, one tensor at a time.

    One tensor at a time is also what `torch.optim.AdamW` does by default on a CPU.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("tag_head"), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": 5e-4 if is_head else 5e-5, "weight_decay": 0.01 if is_decayed else 0.0}
            for (is_head, is_decayed), parameters in groups.items()
        ],
        eps=1e-6,
        foreach=False,
        fused=False,
    )


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear


def _head(dense: nn.Linear, norm: nn.LayerNorm, decoder: nn.Linear) -> nn.Sequential:
    return nn.Sequential(*(copy.deepcopy(layer) for layer in (dense, nn.GELU(), norm, decoder)))
