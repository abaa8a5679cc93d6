"""Sharding over two real processes, against the same step of one, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.sharding import check_sharding, part_of, whole

RANKS = """
import copy
import os
import sys
from pathlib import Path

import torch
from torch import nn
from vidsim.common.entry import leave
from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.sharding import describe, gathered, shard, whole
from vidsim.engine.training_state import read_training_state, write_training_state

folder = Path(sys.argv[1])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)  # 5 rows over 2 processes: 3 and 2
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.table.weight
        self.scale = nn.Parameter(torch.ones(1))  # the second process has nothing of it

    def encode(self, ids):
        hidden = self.table(ids)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return hidden * self.scale

    def forward(self, ids):
        return self.decoder(Net.encode(self, ids)).square().mean(dim=(1, 2)).sum()


def optimizer_of(module):
    names, parameters = zip(*module.named_parameters())
    return torch.optim.AdamW([{"params": list(parameters), "names": list(names)}], lr=0.1, fused=True)


def step(call, module, optimizer, ids, times):
    (call(ids) / 4 * times).backward()
    parameters = list(module.parameters())
    norm = whole(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
    torch.nn.utils.clip_grads_with_norm_(parameters, 0.01, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


accelerator = make_accelerator("fp32")
rank, is_main = accelerator.process_index, accelerator.is_main_process
torch.manual_seed(0)
alone = Net()
module = copy.deepcopy(alone)
ids = torch.tensor([[0, 1], [2, 3], [4, 0], [1, 1]])
own = optimizer_of(alone)
optimizer = optimizer_of(module)
wrapped = shard(module, optimizer, accelerator)
sizes = describe(module)
with torch.no_grad():
    torch.testing.assert_close(module.encode(ids), alone.encode(ids), rtol=0, atol=0)
for _ in range(2):
    wanted = step(alone, alone, own, ids, 1)
    norm = step(wrapped, module, optimizer, ids[rank::2], 2)
    torch.testing.assert_close(norm, wanted)
    assert wanted > 0.01  # so the gradients were cut
with torch.no_grad():
    wrapped(ids)  # leaves embeddings and heads whole
before = [parameter.to_local().clone() for parameter in module.layers.parameters()]
with gathered(module, optimizer, is_main_process=is_main):
    if is_main:
        for (name, parameter), (_, other) in zip(module.named_parameters(), alone.named_parameters(), strict=True):
            torch.testing.assert_close(parameter, other, msg=name)
            for kind, value in own.state[other].items():
                torch.testing.assert_close(optimizer.state[parameter][kind], value, msg=name)
        assert module.decoder.weight is module.table.weight
        write_training_state(folder, module, optimizer, None, {"step": 2})
accelerator.wait_for_everyone()
for parameter, old in zip(module.layers.parameters(), before):
    torch.testing.assert_close(parameter.to_local(), old, rtol=0, atol=0)

# What was written is read into a fresh module, sharded (each its part) and not, and all go on alike.
fresh = Net()
fresh_optimizer = optimizer_of(fresh)
fresh_wrapped = shard(fresh, fresh_optimizer, accelerator)
assert read_training_state(folder, fresh, fresh_optimizer, None) == {"step": 2}
step(wrapped, module, optimizer, ids[rank::2], 2)
step(fresh_wrapped, fresh, fresh_optimizer, ids[rank::2], 2)
for parameter, other in zip(module.parameters(), fresh.parameters(), strict=True):
    torch.testing.assert_close(whole(parameter), whole(other), rtol=0, atol=0)
read_training_state(folder, alone, own, None)
step(alone, alone, own, ids, 1)
for parameter, other in zip(module.parameters(), alone.parameters(), strict=True):
    torch.testing.assert_close(whole(parameter), other)
os.write(1, f"{rank} {sizes}\\n".encode())
accelerator.wait_for_everyone()
leave(0)
"""


@pytest.mark.multi_process
def test_two_processes_train_save_and_read_as_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RANKS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*torchrun, str(script), str(tmp_path)],
        env=os.environ | {"ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    # 15 + 2 * (9 + 3) + 5 + 1 numbers; the larger halves are 3 * 3, 2 * (2 * 3 + 2), 3 and 1.
    assert sorted(result.stdout.splitlines()) == [
        "0 sharded (FSDP2): the first process keeps 29 of 45 parameters",
        "1 sharded (FSDP2): the first process keeps 16 of 45 parameters",
    ]


class Encoder(nn.Linear):
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self(x)


def test_what_cannot_be_sharded_is_refused() -> None:
    check_sharding(Encoder(1, 1), 2, {"ema": False})
    with pytest.raises(UserError, match=r"'ema': does not work with loop\.sharded"):
        check_sharding(Encoder(1, 1), 2, {"fgm": False, "ema": True})
    with pytest.raises(UserError, match="only pretraining and finetuning can be sharded"):
        check_sharding(nn.Linear(1, 1), 2, {})
    with pytest.raises(UserError, match="there is only one process to shard over"):
        check_sharding(Encoder(1, 1), 1, {})


def test_a_tensor_that_is_not_split_is_whole() -> None:
    tensor = torch.ones(3)
    assert whole(tensor) is tensor
    assert part_of(tensor, torch.zeros(3)) is tensor
