from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from vidsim.common.errors import UserError
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.parameters import HEADS, head_test, layer_numbers


class Trained(nn.Module):
    """As in a run: the encoder with something beside it."""

    def __init__(self, encoder: VideoTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.objectives = nn.ModuleDict({"vtc": nn.Linear(2, 2)})


def test_layers_of_bert_by_name(encoder_of: Callable[..., VideoTextEncoder]) -> None:
    module = Trained(encoder_of("bert", pooling="attention"))
    numbers, num_layers = layer_numbers(module, module.encoder)
    assert num_layers == 2
    for name, _ in module.named_parameters():
        parts = name.split(".")
        expected = None
        if name.startswith("encoder.text.encoder.layer."):
            expected = 1 + int(parts[4])
        elif name.startswith("encoder.text.embeddings."):
            expected = 0
        assert numbers.get(name) == expected, name
    assert sorted(set(numbers.values())) == [0, 1, 2]


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "electra", "modernbert", "distilbert"])
def test_every_family_has_embeddings_and_two_layers(family: str, encoder_of: Callable[..., VideoTextEncoder]) -> None:
    encoder = encoder_of(family)
    numbers, num_layers = layer_numbers(encoder, encoder)
    assert num_layers == 2
    assert set(numbers.values()) == {0, 1, 2}
    words = next(name for name, value in encoder.named_parameters() if value is encoder.word_embeddings())
    assert numbers[words] == 0
    last = {id(parameter) for parameter in encoder.last_layer_parameters()}
    assert {name for name, value in encoder.named_parameters() if id(value) in last} == {
        name for name, number in numbers.items() if number == 2
    }
    assert not any(name.startswith(("streams.", "embedding_head.")) for name in numbers)


def test_heads_are_what_stands_beside_the_backbone(encoder_of: Callable[..., VideoTextEncoder]) -> None:
    module = Trained(encoder_of("bert", pooling="attention"))
    heads = {name.split(".")[1] for name, _ in module.named_parameters() if name.startswith(HEADS)}
    others = {name.split(".")[1] for name, _ in module.named_parameters() if not name.startswith(HEADS)}
    assert heads == {"vtc", "embedding_head", "attention_pooling"}
    assert others == {"text", "streams"}


def test_heads_by_the_beginnings_of_their_names(encoder_of: Callable[..., VideoTextEncoder]) -> None:
    module = Trained(encoder_of("bert"))
    names = [name for name, _ in module.named_parameters()]
    assert [name for name in names if head_test(module, None)(name)] == [n for n in names if n.startswith(HEADS)]
    assert [name for name in names if head_test(module, ["objectives.vtc."])(name)] == [
        "objectives.vtc.weight",
        "objectives.vtc.bias",
    ]
    assert not any(map(head_test(module, ["encoder.attention_pooling"]), names))  # there is none in this model
    assert not any(map(head_test(module, []), names))  # nothing learns at the heads' rate
    with pytest.raises(UserError, match=r"'objective\.vtc'.*encoder\.embedding_head\., .*objectives\.vtc\."):
        head_test(module, ["objective.vtc"])
