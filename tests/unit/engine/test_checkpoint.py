from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.checkpoint import load_checkpoint, newest_valid, save_checkpoint, tidy, what_is_wrong
from vidsim.engine.ema import EmaConfig, ExponentialMovingAverage

WIDTH = 64


def model_at(step: int, width: int = WIDTH) -> nn.Linear:
    model = nn.Linear(width, width)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    return model


def export_nothing(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def save(
    folder: Path,
    step: int,
    *,
    keep: int = 2,
    is_best: bool = False,
    model: nn.Module | None = None,
    ema: ExponentialMovingAverage | None = None,
    export: Callable[[Path], None] = export_nothing,
) -> Path:
    module = model if model is not None else model_at(step)
    return save_checkpoint(
        folder,
        step,
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        ema=ema,
        state={"step": step},
        export=export,
        is_best=is_best,
        keep=keep,
    )


def load(folder: Path, width: int = WIDTH) -> int:
    """Step of a checkpoint, after its tensors were checked against it."""
    model = model_at(-1, width)
    state = load_checkpoint(folder, model, torch.optim.SGD(model.parameters(), lr=0.1), None)
    assert all((parameter == state["step"]).all() for parameter in model.parameters())
    return int(state["step"])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_has_the_files_for_users_and_those_for_resuming(tmp_path: Path) -> None:
    folder = save(tmp_path / "run" / "checkpoints", 500)
    assert folder.name == "step_000500"
    assert names(folder) == {"config.json", "training_state", "MANIFEST.json", "COMPLETE"}
    assert names(folder / "training_state") == {"module.safetensors", "optimizer.safetensors", "state.json"}
    assert newest_valid(folder.parent) == folder
    assert load(folder) == 500


def test_without_any_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "absent") is None
    assert newest_valid(tmp_path) is None
    tidy(tmp_path / "absent")


def test_links_are_relative_and_follow(tmp_path: Path) -> None:
    save(tmp_path, 1, is_best=True)
    save(tmp_path, 2)
    assert os.readlink(tmp_path / "last") == "step_000002"
    assert os.readlink(tmp_path / "best") == "step_000001"
    moved = tmp_path.with_name("moved")
    shutil.move(tmp_path, moved)
    assert load((moved / "best").resolve()) == 1


def test_links_that_a_kill_left_behind_are_mended(tmp_path: Path) -> None:
    save(tmp_path, 1, is_best=True)
    save(tmp_path, 2, is_best=True)
    for name in ("last", "best"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("step_000001")
    (tmp_path / ".step_000003.77.tmp").mkdir()
    (tmp_path / ".step_000003.77.tmp" / "half").touch()
    (tmp_path / ".last.77.tmp").symlink_to("step_000001")
    tidy(tmp_path)
    assert names(tmp_path) == {"step_000001", "step_000002", "last", "best"}
    assert os.readlink(tmp_path / "last") == os.readlink(tmp_path / "best") == "step_000002"


def test_rotation_keeps_the_newest_the_best_and_never_fewer_than_two(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, keep=3, is_best=step == 2)
    assert names(tmp_path) == {"step_000002", "step_000005", "step_000006", "step_000007", "last", "best"}
    save(tmp_path, 8, keep=1, is_best=True)
    assert names(tmp_path) == {"step_000007", "step_000008", "last", "best"}


def test_rotation_counts_whole_checkpoints_only(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    (tmp_path / "step_000003" / "training_state" / "state.json").unlink()
    (tmp_path / "step_000002" / "COMPLETE").unlink()
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == {"step_000001", "step_000004", "last"}


def test_numbers_of_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 999_999)
    save(tmp_path, 1_000_000)
    assert newest_valid(tmp_path) == tmp_path / "step_1000000"


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("fault", [flip_a_byte, truncate, Path.unlink])
@pytest.mark.parametrize(
    "file",
    ["config.json", "training_state/module.safetensors", "training_state/state.json", "MANIFEST.json", "COMPLETE"],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, fault: Callable[[Path], None], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    fault(tmp_path / "step_000002" / file)
    found = newest_valid(tmp_path)
    assert found == tmp_path / "step_000001"
    assert load(found) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint not used: ")
    assert "step_000002" in line
    assert file in line or "COMPLETE" in line


def test_a_changed_size_is_seen_without_reading_the_data(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    file = folder / "training_state" / "module.safetensors"
    flip_a_byte(file)
    assert what_is_wrong(folder, hashes=False) is None
    assert what_is_wrong(folder) == f"{file}: sha256 differs from MANIFEST.json"
    truncate(file)
    assert "bytes instead of" in (what_is_wrong(folder, hashes=False) or "")


def test_if_none_is_whole_the_run_does_not_start_from_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip_a_byte(tmp_path / "step_000001" / "config.json")
    with pytest.raises(UserError, match=r"none of the 1 checkpoints is whole.*config\.json"):
        newest_valid(tmp_path)


def test_going_on_from_an_older_checkpoint_removes_the_damaged_later_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 100)
    save(tmp_path, 200, is_best=True)
    flip_a_byte(tmp_path / "step_000200" / "training_state" / "module.safetensors")
    assert newest_valid(tmp_path) == tmp_path / "step_000100"
    save(tmp_path, 150)
    assert names(tmp_path) == {"step_000100", "step_000150", "last"}
    assert "step_000200: removed" in capsys.readouterr().err


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1, is_best=True)
    assert names(tmp_path) == {"step_000001", "last", "best"}
    # Killed between putting the old one aside and the new one in place:
    (tmp_path / "step_000001").rename(tmp_path / "step_000001.replaced")
    assert newest_valid(tmp_path) == tmp_path / "step_000001.replaced"
    save(tmp_path, 1)
    assert names(tmp_path) == {"step_000001", "last"}


def test_users_get_the_average_and_training_goes_on_with_its_own(tmp_path: Path) -> None:
    model = model_at(4)
    ema = ExponentialMovingAverage(model, EmaConfig())
    with torch.no_grad():
        model.bias.fill_(8)
    seen = []
    folder = save(tmp_path, 1, model=model, ema=ema, export=lambda _: seen.append(model.bias[0].item()))
    assert seen == [4.0]
    assert model.bias[0].item() == 8.0
    assert (folder / "training_state" / "ema.safetensors").is_file()


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def fail(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"x")
        raise RuntimeError("no such head")

    with pytest.raises(RuntimeError, match="no such head"):
        save(tmp_path, 2, export=fail)
    assert names(tmp_path) == {"step_000001", "last"}


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path, 1)
    model = model_at(2)
    model.register_buffer("huge", torch.zeros(1).expand(10**15))  # 4 PB, and 4 more in the export
    with pytest.raises(UserError, match=r"needs 8,000,000,0\d\d,\d\d\d,\d\d\d bytes, [\d,]+ are free") as caught:
        save(tmp_path, 2, model=model)
    assert caught.value.file == str(tmp_path)
    assert names(tmp_path) == {"step_000001", "last"}


def test_a_file_that_may_not_grow_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (WIDTH * WIDTH * 2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step_000002: grew beyond the limit"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == {"step_000001", "last"}
    assert newest_valid(tmp_path) == tmp_path / "step_000001"


DISK_FULL = """
import sys
from pathlib import Path
import torch
from torch import nn
from vidsim.common.errors import UserError
from vidsim.engine.checkpoint import newest_valid, save_checkpoint

folder = Path(sys.argv[1]) / "checkpoints"
model = nn.Linear(64, 64)

def save(step, extra):
    save_checkpoint(
        folder, step, module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), ema=None, state={},
        export=lambda path: (path / "model.safetensors").write_bytes(bytes(extra)), is_best=False, keep=2,
    )

save(1, 10)
try:
    save(2, 40_000_000)
except UserError as error:
    print(error)
print(newest_valid(folder).name, sorted(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    shell = f'mount -t tmpfs -o size=20m none "{mount}" && exec "{sys.executable}" -c "$SCRIPT" "{mount}"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here, so no disk of its own; the file size limit is tested instead")
    result = subprocess.run(
        [*command, shell], env=os.environ | {"SCRIPT": DISK_FULL}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    message, rest = result.stdout.splitlines()
    assert f"{mount}/checkpoints/step_000002: no space left on the disk" in message
    assert rest == "step_000001 ['last', 'step_000001']"


def test_a_forbidden_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"step_000001: cannot be written"):
        save(tmp_path / "file" / "checkpoints", 1)
    (tmp_path / "last").mkdir()
    with pytest.raises(UserError, match="last: is in the place of a link"):
        save(tmp_path, 1)


def _save_until_killed(folder: Path, width: int) -> None:
    """In a forked process: go on from the newest checkpoint, saving every step twice."""
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    newest = newest_valid(folder)
    step = 0 if newest is None else load(newest, width)
    while True:
        step += 1
        for is_best in (False, step % 3 == 0):
            save(folder, step, model=model_at(step, width), is_best=is_best)


def _kill_again_and_again(folder: Path, times: int, width: int, seed: int) -> int:
    """Kill a saving process at random moments; after each kill the newest checkpoint must be whole.

    Returns:
        Kills that met a half-written checkpoint.
    """
    generator = random.Random(seed)
    reached, num_half_written = 1, 0
    save(folder, 1, model=model_at(1, width))
    started = time.monotonic()
    save(folder, 1, model=model_at(1, width))
    longest = 8 * (time.monotonic() - started)
    for _ in range(times):
        child = os.fork()
        if child == 0:
            try:
                _save_until_killed(folder, width)
            finally:
                os._exit(1)  # only reached if something failed
        time.sleep(generator.uniform(0.002, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the saving process failed before it was killed"
        num_half_written += any(name.endswith(".tmp") for name in names(folder))
        newest = newest_valid(folder)
        assert newest is not None
        step = load(newest, width)
        assert step >= reached
        reached = step
    assert reached > 1
    return num_half_written


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    assert _kill_again_and_again(tmp_path, 10, width=200, seed=0) > 0
    save(tmp_path, 10_000, model=model_at(10_000, 200))
    assert not any(name.endswith((".tmp", ".replaced")) for name in names(tmp_path))


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    assert _kill_again_and_again(tmp_path, 200, width=300, seed=1) > 20
