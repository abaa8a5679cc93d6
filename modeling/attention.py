"""Attention over packed sequences: the videos of a batch lie one behind the other, and nothing is computed for padding.

All linear layers of the text encoder then see [1, N, H], N being the real positions of the batch. Only attention must
know which of them belong together. Three ways, all exact:

- CPU: one video after the other, written out; at 40 positions half the time of SDPA with a mask, forward and backward.
- CUDA in half precision without attention dropout: `torch.nn.attention.varlen`, which takes the lengths.
- Everywhere else, and when compiled: queries, keys and values are spread to [B, S] rows for one call of SDPA with a
  mask, and its result is gathered again.

The function is registered with transformers' `AttentionInterface` (public) under `PACKED`; without a `packing` it is
plain SDPA. Encoders that do not ask the interface cannot be packed, and those that mix positions in another way
(local windows) are not.

Legend: B videos, S positions of the longest, N real positions of all, A heads, C width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch without it: the other way is taken
    varlen_attn = None  # type: ignore[assignment]

PACKED = "vidsim_packed"


@dataclass(frozen=True)
class Packing:
    """Where the packed positions of a batch belong.

    Attributes:
        mask: bool [B, S], True = real position.
        places: int64 [N], row-major places of the real positions in [B, S], rising.
        bounds: int32 [B + 1], where each video starts and ends among the packed positions.
        lengths: Real positions of each video, on a CPU; elsewhere None, as it would wait for the device.
    """

    mask: torch.Tensor
    places: torch.Tensor
    bounds: torch.Tensor
    lengths: list[int] | None

    @classmethod
    def of(cls, mask: torch.Tensor) -> Packing:
        """Of a mask bool [B, S]; on an accelerator this waits for the device once."""
        counts = mask.sum(dim=1)
        bounds = functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
        lengths = counts.tolist() if mask.device.type == "cpu" else None
        return cls(mask, mask.flatten().nonzero().squeeze(1), bounds, lengths)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Real positions of [B, S, ...], as [N, ...]."""
        return x.flatten(0, 1).index_select(0, self.places)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ...] as [B, S, ...] with zeros at padded positions."""
        batch_size, length = self.mask.shape
        flat = x.new_zeros(batch_size * length, *x.shape[1:]).index_copy(0, self.places, x)
        return flat.view(batch_size, length, *x.shape[1:])


def can_pack(text: PreTrainedModel) -> bool:
    """Whether a text encoder asks the attention interface and looks at all positions of a sequence alike."""
    asks = bool(text._supports_attention_backend) and text.config._attn_implementation in ("sdpa", PACKED)
    return asks and not has_local_attention(text)


def has_local_attention(text: PreTrainedModel) -> bool:
    """Whether some layers of a text encoder look at a window of positions only (ModernBERT)."""
    return "sliding_attention" in (getattr(text.config, "layer_types", None) or ())


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each video.

    Args:
        module: The attention layer that asks.
        query: float [1, A, N, C]; `key` and `value` alike.
        key: See `query`.
        value: See `query`.
        attention_mask: Bool [B, 1, 1, S]; what is looked at is the packing, where there is one.
        dropout: Of the attention weights.
        scaling: Factor of the products; None: 1 / sqrt(C).
        packing: Which positions belong together; None: plain SDPA over [B, A, S, C].
        **kwargs: Of the interface; handed on.

    Returns:
        float [1, N, A, C], and None in place of weights.
    """
    if packing is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False, **kwargs
        )
        return result
    # The lengths of every batch are others: compiled code would be compiled again for each.
    if packing.lengths is not None and not torch.compiler.is_compiling():
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _one_by_one(query[0] * scaling, key[0], value[0], packing.lengths, dropout).unsqueeze(0), None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, A, C]
    if _has_varlen(query, dropout):
        length, bounds = packing.mask.shape[1], packing.bounds
        attended = varlen_attn(
            query.contiguous(), key.contiguous(), value.contiguous(), bounds, bounds, length, length, scale=scaling
        )
        assert isinstance(attended, torch.Tensor)
        return attended.unsqueeze(0), None
    query, key, value = (packing.spread(x).transpose(1, 2) for x in (query, key, value))  # [B, A, S, C]
    spread = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=packing.mask[:, None, None, :], dropout_p=dropout, scale=scaling
    )
    return packing.pack(spread.transpose(1, 2)).unsqueeze(0), None


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], dropout: float
) -> torch.Tensor:
    """Float [N, A, C] of scaled queries, keys and values [A, N, C]."""
    attended = []
    for q, k, v in zip(*(x.split(lengths, dim=1) for x in (query, key, value)), strict=True):
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1)
        if dropout > 0:
            weights = functional.dropout(weights, dropout)
        attended.append(torch.bmm(weights.to(v.dtype), v))
    return torch.cat(attended, dim=1).transpose(0, 1)


def _has_varlen(query: torch.Tensor, dropout: float) -> bool:
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    return varlen_attn is not None and query.is_cuda and is_half and dropout == 0.0


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)  # for whoever calls the text encoder with a mask [B, S]
