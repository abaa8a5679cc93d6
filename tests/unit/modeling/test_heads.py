from __future__ import annotations

import math

import torch

from vidsim.modeling.heads import EmbeddingHead, MfmHead, MlmHead, TagHead


def test_embedding_head_by_hand() -> None:
    head = EmbeddingHead(2, 2)
    with torch.no_grad():
        head.projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        head.projection.bias.copy_(torch.tensor([0.0, -4.0]))
    embedding, projection = head(torch.tensor([[3.0, 4.0]]))
    assert projection.tolist() == [[3.0, 4.0]]
    torch.testing.assert_close(embedding, torch.tensor([[0.6, 0.8]]))


def test_embedding_of_a_low_precision_head_is_float32() -> None:
    embedding, projection = EmbeddingHead(4, 3).to(torch.bfloat16)(torch.ones(2, 4))
    assert (embedding.dtype, projection.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_fresh_heads_start_as_in_bert() -> None:
    torch.manual_seed(0)
    for head in (TagHead(300, 200), MfmHead(300, 200), MlmHead(300, 200, 50), EmbeddingHead(300, 200)):
        for name, parameter in head.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif "norm" not in name:
                assert 0.019 < parameter.std().item() < 0.021, name


def test_tag_head_sees_only_the_positive_part() -> None:
    head = TagHead(2, 1)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[2.0, 5.0]]))
        head.classifier.bias.fill_(1.0)
    assert head(torch.tensor([[3.0, -7.0]])).tolist() == [[7.0]]


def test_mlm_head_decodes_with_the_table_it_is_given() -> None:
    torch.manual_seed(0)
    head = MlmHead(4, 2, 3, layer_norm_eps=0.0)
    with torch.no_grad():
        head.dense.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        head.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], requires_grad=True)
    # gelu is monotone here, so LayerNorm over two values gives +1 and -1.
    logits = head(torch.tensor([[3.0, 1.0, 9.0, 9.0]]), table)
    torch.testing.assert_close(logits, torch.tensor([[1.5, -1.0, -0.5]]))
    logits[0, 2].backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad, torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0]]))
    assert "weight" not in {name for name, _ in head.named_parameters()}


def test_mfm_head_by_hand() -> None:
    head = MfmHead(2, 1, layer_norm_eps=0.0)
    with torch.no_grad():
        head.dense.weight.copy_(torch.eye(2))
        head.decoder.weight.copy_(torch.tensor([[3.0, 1.0]]))
    assert math.isclose(head(torch.tensor([[2.0, 1.0]])).item(), 3.0 - 1.0, rel_tol=1e-6)
