"""Folders in which commands go wrong, and the rule of every error: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import contextlib
import io
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from vidsim.launch.cli import main

FRAME_DIM = 8
PRETRAIN = {
    "output_dir": "runs/pre",
    "data": {"stages": [{"data": ["data/pointwise"], "num_epochs": 1}], "num_tags": 20, "held_out_fraction": 0.2},
    "tokenizer": {"vocab_size": 500},
    "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "embedding_dim": 8, "max_frames": 4},
    "loop": {"micro_batch_size": 8, "eval_every_steps": 2, "checkpoint_every_steps": 2, "max_steps": 4},
}
FINETUNE = {
    "init_from": "runs/pre",
    "output_dir": "runs/fine",
    "data": {"videos": ["data/pairwise"], "pairs": "data/pairs.tsv"},
    "loop": {"micro_batch_size": 8, "eval_every_steps": 2, "max_steps": 4},
}


@dataclass(frozen=True)
class Place:
    """A working folder: `src` (competition files), `data` (converted), `runs/pre`, `emb`, and two recipes."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        """A path in it."""
        return self.folder / name

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run a command there: exit code, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words))
        return code, out.getvalue(), err.getvalue()

    def succeeds(self, *words: str) -> str:
        """Standard error of a command that must succeed."""
        code, _, err = self.run(*words)
        assert code == 0, err
        return err

    def fails(self, *words: str, makes: tuple[str, ...] = (), is_quiet: bool = True) -> str:
        """The error of a command that must fail as every command fails.

        Args:
            words: The command.
            makes: Folders that it may leave, whole as far as they are.
            is_quiet: Whether the error is all that stands on standard error.
        """
        before = self.files()
        code, _, err = self.run(*words)
        lines = err.splitlines()
        assert code == 2, err
        assert lines[-1].startswith("error: "), err
        assert [line for line in lines if line.startswith("error: ") or "Traceback" in line] == lines[-1:]
        assert len(lines) == 1 or not is_quiet, err
        new = {name for name in self.files() - before if not name.startswith(tuple(f"{made}/" for made in makes))}
        assert new == set()
        assert not [name for name in self.files() if name.endswith(".tmp")]
        return lines[-1].removeprefix("error: ")

    def files(self) -> set[str]:
        """Every file, by its path from the folder."""
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What every test starts from; made once, by the commands themselves."""
    place = Place(tmp_path_factory.mktemp("world"))
    size = ("--num_videos", "60", "--num_pairs", "40", "--num_test_pairs", "20", "--num_files", "2")
    place.succeeds("generate", "--out", "src", *size, "--frame_dim", str(FRAME_DIM))
    place.succeeds("convert", "aiac", "src", "--out", "data", "--frame_dim", str(FRAME_DIM), "--num_processes", "1")
    shutil.rmtree(place / "data" / "pointwise" / ".convert")
    (place / "pretrain.yaml").write_text(yaml.safe_dump(PRETRAIN))
    (place / "finetune.yaml").write_text(yaml.safe_dump(FINETUNE))
    (place / "a_file").write_text("in the way\n")
    (place / "empty").mkdir()
    place.succeeds("pretrain", "--config", "pretrain.yaml")
    for part in ("pairwise", "test_a", "test_b"):
        place.succeeds("embed", "runs/pre", f"data/{part}", "--out", f"emb/{part}")
    return place


@pytest.fixture
def place(world: Place, tmp_path: Path) -> Place:
    """A copy that a test may break."""
    shutil.copytree(world.folder, tmp_path / "here", symlinks=True)
    return Place(tmp_path / "here")


@pytest.fixture
def file_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """A block in which no file may grow beyond so many bytes, as on a disk that is full."""

    @contextlib.contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited
