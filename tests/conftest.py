"""What every test stands on: one thread per process, nothing from the network."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest

# Before torch or transformers are imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

# A shell that starts tests in the background lets them ignore Ctrl-C, and so their children; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_connect = socket.socket.connect


def _refuse_other_machines(self: socket.socket, address: Any) -> None:
    """Let processes of this machine meet (gloo, a local server); any other host is a network."""
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])
        if host not in ("localhost", "::1", "0.0.0.0", "", socket.gethostname()) and not host.startswith("127."):
            raise AssertionError(f"a test tried to reach {host}: tests read nothing outside the repository")
    _connect(self, address)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU, saying so."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _refuse_other_machines)
