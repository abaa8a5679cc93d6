"""A saved folder works in a process in which vidsim cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.processor import VideoTextProcessor

STREAMS = {"frames": {"dim": 2, "max_length": 4}, "audio": {"dim": 3, "max_length": 4}}
TITLES = ["red cats", "", "猫跑 sun"]
CHILD = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vidsim":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocker())
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

folder, inputs, again = sys.argv[1:]
try:
    AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("code of the folder ran without permission")
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
arrays = np.load(inputs)
frames = [arrays[f"frames{i}"] for i in range(3)]
with torch.inference_mode():
    np.save(again + ".npy", model(**processor(titles=%s, frames=frames)).embedding.numpy())
model.save_pretrained(again)
processor.save_pretrained(again)
copy = AutoModel.from_pretrained(again, trust_remote_code=True)
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
assert not [name for name in sys.modules if name.partition(".")[0] == "vidsim"]
"""


@pytest.mark.multi_process
def test_loads_where_vidsim_is_not_installed(
    tokenizer_of: Callable[[str], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of("bert")
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 3}
    config = VidsimConfig.from_sizes(
        vocab_size=len(tokenizer), pad_token_id=0, streams=STREAMS, pooling="attention", **sizes
    )
    model, processor = VideoTextEncoder(config).eval(), VideoTextProcessor(tokenizer, streams=STREAMS)
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(n, 2)).astype(np.float16) for n in (3, 0, 7)]
    expected = model(**processor(TITLES, frames=frames)).embedding.detach().numpy()
    folder, inputs, again = tmp_path / "saved.model", tmp_path / "inputs.npz", tmp_path / "again"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    np.savez(inputs, **{f"frames{i}": array for i, array in enumerate(frames)})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    child = subprocess.run(
        [sys.executable, "-I", "-c", CHILD % repr(TITLES), str(folder), str(inputs), str(again)],
        cwd=elsewhere,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert np.array_equal(np.load(f"{again}.npy"), expected)
    names = {path.name for path in folder.glob("*.py")}
    assert {path.name for path in again.glob("*.py")} >= names
    for name in names:
        assert (again / name).read_text() == (folder / name).read_text()
