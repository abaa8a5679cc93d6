from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.ema import EmaConfig, ExponentialMovingAverage
from vidsim.engine.optimizer import OptimizerConfig, make_optimizer, parameter_groups
from vidsim.engine.training_state import module_tensors, num_bytes, read_training_state, write_training_state


class Model(nn.Module):
    """Tied weights, a buffer, a scalar, a frozen and a transposed parameter, one that never gets a gradient."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(6, width)
        self.decoder = nn.Linear(width, 6, bias=True)
        self.decoder.weight = self.words.weight
        self.norm = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.turned = nn.Parameter(torch.randn(3, width).t())
        self.idle = nn.Parameter(torch.randn(2, 2))
        self.register_buffer("low", torch.randn(5).to(torch.bfloat16))
        self.register_buffer("not_saved", torch.zeros(1), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.words(ids)) * self.scale
        return self.decoder(hidden).pow(2).mean() + (hidden @ self.turned).pow(2).mean()


class Run:
    """A model in training."""

    def __init__(self, seed: int = 0, *, width: int = 4, with_ema: bool = True, decay: float = 0.5) -> None:
        torch.manual_seed(seed)
        self.model = Model(width)
        config = OptimizerConfig(learning_rate=0.01, layer_decay=decay)
        groups = parameter_groups(
            self.model, config, lambda name: name == "scale", lambda name: 0 if "words" in name else 1, 1
        )
        self.optimizer = make_optimizer(groups, config, torch.device("cpu"))
        self.ema = ExponentialMovingAverage(self.model, EmaConfig()) if with_ema else None

    def train(self, steps: range) -> list[float]:
        losses = []
        for step in steps:
            torch.manual_seed(step)
            loss = self.model(torch.randint(0, 6, (8,)))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.update(self.model)
            losses.append(loss.item())
        return losses

    def write(self, folder: Path, state: dict[str, Any] | None = None) -> Path:
        folder.mkdir(exist_ok=True)
        write_training_state(folder, self.model, self.optimizer, self.ema, state or {})
        return folder

    def read(self, folder: Path) -> dict[str, Any]:
        return read_training_state(folder, self.model, self.optimizer, self.ema)


def test_a_resumed_run_is_the_straight_run_to_the_bit(tmp_path: Path) -> None:
    straight = Run()
    straight.train(range(5))
    straight.write(tmp_path / "state", {"progress": {"step": 5, "best": 0.1}, "name": "ä"})
    wanted = straight.train(range(5, 10))

    resumed = Run(seed=1)
    for group in resumed.optimizer.param_groups:
        group["lr"] = 99.0
    assert resumed.read(tmp_path / "state") == {"progress": {"step": 5, "best": 0.1}, "name": "ä"}
    assert resumed.train(range(5, 10)) == wanted
    tensors, _ = module_tensors(straight.model)
    for name, tensor in module_tensors(resumed.model)[0].items():
        assert torch.equal(tensor, tensors[name]), name
    for first, second in zip(
        straight.optimizer.state_dict()["state"].values(),
        resumed.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[kind], second[kind]) for kind in first)
    assert straight.ema is not None
    assert resumed.ema is not None
    for name, tensor in straight.ema.state_dict().items():
        assert torch.equal(resumed.ema.state_dict()[name], tensor), name
    # Still tied, and the group settings are back, as the types they were.
    assert resumed.model.decoder.weight is resumed.model.words.weight
    for first, second in zip(straight.optimizer.param_groups, resumed.optimizer.param_groups, strict=True):
        assert {k: v for k, v in first.items() if k != "params"} == {k: v for k, v in second.items() if k != "params"}


def test_state_is_stored_under_names_and_tied_tensors_once(tmp_path: Path) -> None:
    run = Run()
    run.train(range(1))
    folder = run.write(tmp_path / "state")
    module = load_file(folder / "module.safetensors")
    assert set(module) == {
        "words.weight", "decoder.bias", "scale", "frozen", "turned", "idle", "low",
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    content = json.loads((folder / "state.json").read_text())
    assert content["tied"] == {"decoder.weight": "words.weight"}
    kinds = {key.split("/")[0] for key in load_file(folder / "optimizer.safetensors")}
    assert kinds == {"step", "exp_avg", "exp_avg_sq"}
    moments = load_file(folder / "optimizer.safetensors")
    parameter = run.model.turned
    assert torch.equal(moments["exp_avg/turned"], run.optimizer.state[parameter]["exp_avg"])
    assert not any(name in key for key in moments for name in ("frozen", "idle"))
    assert {path.name for path in folder.iterdir()} == {
        "module.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json",
    }  # fmt: skip


def test_nothing_trained_yet_is_a_state_too(tmp_path: Path) -> None:
    run = Run()
    run.write(tmp_path / "state")
    other = Run(seed=1)
    other.read(tmp_path / "state")
    assert other.train(range(2)) == run.train(range(2))


def test_size_is_that_of_the_files(tmp_path: Path) -> None:
    run = Run()
    run.train(range(1))
    folder = run.write(tmp_path / "state")
    on_disk = sum(
        tensor.numel() * tensor.element_size()
        for file in folder.glob("*.safetensors")
        for tensor in load_file(file).values()
    )
    of_module, of_all = num_bytes(run.model, run.optimizer, run.ema)
    assert of_all == on_disk
    assert of_module == sum(t.numel() * t.element_size() for t in load_file(folder / "module.safetensors").values())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = Run()
    run.train(range(2))
    return run.write(tmp_path / "state")


def edit(file: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(file)
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("module.safetensors", {"scale": None}, r"field 'scale': 1 tensor\(s\) missing \['scale'\], 0 unexpected"),
        ("module.safetensors", {"extra": torch.zeros(1)}, r"0 tensor\(s\) missing \[\], 1 unexpected \['extra'\]"),
        ("module.safetensors", {"idle": torch.zeros(2, 3)}, r"'idle': has shape \[2, 3\], this run has \[2, 2\]"),
        ("module.safetensors", {"idle": torch.zeros(2, 2).half()}, r"'idle': is torch.float16, this run has"),
        ("optimizer.safetensors", {"exp_avg/scale": None}, r"field 'exp_avg/scale': is missing"),
        ("optimizer.safetensors", {"exp_avg/nobody": torch.zeros(1)}, "belongs to no parameter"),
        ("optimizer.safetensors", {"exp_avg/frozen": torch.zeros(2)}, "belongs to no parameter"),
        ("optimizer.safetensors", {"exp_avg/turned": torch.zeros(9)}, r"\[9\], this run has \[4, 3\]"),
        ("ema.safetensors", {"average.scale": None}, r"field 'average.scale'"),
    ],
)
def test_what_does_not_fit_is_named(
    saved: Path, file: str, change: dict[str, torch.Tensor | None], message: str
) -> None:
    edit(saved / file, change)
    run = Run(seed=3)
    before = {name: tensor.clone() for name, tensor in module_tensors(run.model)[0].items()}
    with pytest.raises(UserError, match=message) as caught:
        run.read(saved)
    assert caught.value.file == str(saved / file)
    # Nothing was changed.
    assert all(torch.equal(tensor, before[name]) for name, tensor in module_tensors(run.model)[0].items())
    assert not run.optimizer.state


@pytest.mark.parametrize("file", ["module.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["missing", "empty", "half", "noise", "folder"])
def test_a_damaged_file_is_named(saved: Path, file: str, fault: str) -> None:
    path = saved / file
    content = path.read_bytes()
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "noise": b"\xff" * 500}[fault])
    with pytest.raises(UserError) as caught:
        Run().read(saved)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("file", ["module.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
def test_a_planted_pickle_is_never_run(saved: Path, file: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    payload = f"cos\nsystem\n(S'touch {witness}'\ntR.".encode()
    (saved / file).write_bytes(payload)
    with pytest.raises(UserError):
        Run().read(saved)
    assert not witness.exists()
    # The payload is live: the stock way of reading it runs it.
    load = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", load, str(saved / file)], check=True)
    assert witness.exists()


def test_another_architecture_grouping_or_average_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"'turned': has shape \[4, 3\], this run has \[5, 3\]"):
        Run(width=5).read(saved)
    with pytest.raises(UserError, match="grouped in another way"):
        Run(decay=1.0).read(saved)
    with pytest.raises(UserError, match="was saved with a moving average, this run is without"):
        Run(with_ema=False).read(saved)


def test_a_tie_that_was_cut_is_explained(saved: Path) -> None:
    run = Run()
    run.model.decoder.weight = nn.Parameter(torch.zeros(6, 4))
    with pytest.raises(UserError, match=r"missing \['decoder.weight'\].*'decoder.weight' was tied to 'words.weight'"):
        run.read(saved)


@pytest.mark.parametrize("content", ["[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "format": 1}'])
def test_another_format_is_refused(saved: Path, content: str) -> None:
    (saved / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json"):
        Run().read(saved)


def test_not_a_number_in_the_state_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Run().write(tmp_path / "state", {"best": float("nan")})


def test_views_of_one_storage_are_stored_in_full(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            both = torch.arange(6.0)
            self.first = nn.Parameter(both[:3])
            self.second = nn.Parameter(both[2:])

    model = Views()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    write_training_state(tmp_path, model, optimizer, None, {})
    other = Views()
    with torch.no_grad():
        other.first.zero_()
        other.second.zero_()
    read_training_state(tmp_path, other, torch.optim.SGD(other.parameters(), lr=2.0), None)
    assert other.first.tolist() == [0, 1, 2]
    assert other.second.tolist() == [2, 3, 4, 5]


@pytest.mark.gpu
def test_a_state_of_the_gpu_goes_on_on_the_cpu_and_back(tmp_path: Path) -> None:
    run = Run()
    run.model.cuda()
    config = OptimizerConfig()
    groups = parameter_groups(run.model, config, lambda name: False, lambda name: None, 0)
    run.optimizer = make_optimizer(groups, config, torch.device("cuda"))
    run.model(torch.arange(6, device="cuda")).backward()
    run.optimizer.step()
    assert run.ema is not None
    run.ema.update(run.model)
    folder = run.write(tmp_path / "state")
    for device in ("cpu", "cuda"):
        other = Run(seed=5)
        other.model.to(device)
        groups = parameter_groups(other.model, config, lambda name: False, lambda name: None, 0)
        other.optimizer = make_optimizer(groups, config, torch.device(device))
        other.read(folder)
        for name, tensor in module_tensors(run.model)[0].items():
            assert torch.equal(module_tensors(other.model)[0][name].cpu(), tensor.cpu()), name
        other.model(torch.arange(6, device=device)).backward()
        other.optimizer.step()
