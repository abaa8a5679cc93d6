"""Which layer of the text encoder a parameter belongs to, and which parameters are heads: for learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from vidsim.common.errors import UserError

from .encoder import VideoTextEncoder

HEADS = ("objectives.", "tags.", "encoder.embedding_head.", "encoder.attention_pooling.")
"""Prefixes of the parameters, in the modules that are trained, which learn at the heads' rate; the streams learn at the
backbone's, as published. The published code counts only the tag head, the projection and the attention pooling as
heads; its presets say so themselves."""


def head_test(module: nn.Module, prefixes: Sequence[str] | None) -> Callable[[str], bool]:
    """Whether a parameter, by its name, is a head's.

    Args:
        module: What is trained.
        prefixes: Beginnings of names; None: `HEADS`.

    Raises:
        UserError: Neither a parameter nor one of `HEADS` begins so.
    """
    if prefixes is None:
        return lambda name: name.startswith(HEADS)
    given, names = tuple(prefixes), [name for name, _ in module.named_parameters()]
    for prefix in given:
        # A usual head that this model happens to lack, such as attention pooling, is no mistake.
        if not any(name.startswith(prefix) for name in [*names, *HEADS]):
            known = sorted({".".join(name.split(".")[:2]) + "." for name in names})
            raise UserError(
                f"no parameter begins with {prefix!r}",
                field="optimizer.head_parameters",
                fix=f"name beginnings such as {', '.join(known[:8])}",
            )
    return lambda name: name.startswith(given)


def layer_numbers(module: nn.Module, encoder: VideoTextEncoder) -> tuple[dict[str, int], int]:
    """Number the layers of the text encoder, bottom to top.

    Args:
        module: What is trained; contains `encoder`.
        encoder: Its encoder.

    Returns:
        Parameter name in `module` -> 0 for word, position and type embeddings, 1 … L for the layers; parameters outside
        (streams, heads, a final norm) are not in it. And L.
    """
    layers = encoder.layers()
    number = {id(parameter): index + 1 for index, layer in enumerate(layers) for parameter in layer.parameters()}
    for name, parameter in encoder.text.named_parameters():
        if "embeddings" in name.split("."):
            number.setdefault(id(parameter), 0)
    names = {name: number[id(parameter)] for name, parameter in module.named_parameters() if id(parameter) in number}
    return names, len(layers)
