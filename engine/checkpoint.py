"""Checkpoint folders that are whole or not there, and the newest of them that can be trusted.

A checkpoint is written into a temporary folder beside its place. Every file is flushed to the disk,
`MANIFEST.json` records size and sha256 of each, `COMPLETE` holds the sha256 of the manifest, and only then
one rename puts the folder in place. So a folder that is called `step_...` is whole, whenever the process was
killed. COMPLETE is written before the rename, not after it: the rename is the atomic act, and a kill between
the two would throw a whole checkpoint away. What COMPLETE is there for are copies to another disk that were
cut short.

The links `last` and `best` are for people and follow from the folders; nothing is decided by them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from vidsim.common.errors import UserError
from vidsim.common.files import disk_full, read_json, require_free_space, sha256_file, sync, too_large
from vidsim.engine.ema import ExponentialMovingAverage
from vidsim.engine.training_state import num_bytes, read_training_state, write_training_state

MANIFEST, COMPLETE, TRAINING_STATE = "MANIFEST.json", "COMPLETE", "training_state"
# A checkpoint that is written anew for the same step first puts the old one aside, under a name that still
# counts.
_FOLDER = re.compile(r"step_(\d{6,})(\.replaced)?")
_MIN_KEPT = 2
# For configuration, tokenizer and model card in the exported folder, beside the tensors.
_SMALL_FILES_BYTES = 16 * 2**20


def save_checkpoint(
    checkpoints_dir: Path,
    step: int,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage | None,
    state: Mapping[str, Any],
    export: Callable[[Path], None],
    is_best: bool,
    keep: int,
) -> Path:
    """Write `checkpoints_dir/step_000500`; call on the main process only.

    Args:
        checkpoints_dir: Made if it is missing.
        step: Optimizer steps taken.
        module: Not wrapped.
        optimizer: Over parameters of `module`.
        ema: If given, `export` sees the module with the averaged parameters.
        state: Strict JSON that `load_checkpoint` gives back.
        export: Writes the files for users (config.json, model.safetensors, ...) into the folder it is given.
        is_best: Whether `best` points here from now on.
        keep: Newest checkpoints that are kept, besides the best; never fewer than two whole ones.

    Returns:
        The folder.

    Raises:
        UserError: Too little space, or the folder cannot be written; older checkpoints are as they were.
    """
    final = checkpoints_dir / f"step_{step:06d}"
    temporary = checkpoints_dir / f".{final.name}.{os.getpid()}.tmp"
    with _explained(final):
        checkpoints_dir.mkdir(parents=True, exist_ok=True)
        tidy(checkpoints_dir)
        of_module, of_state = num_bytes(module, optimizer, ema)
        require_free_space(checkpoints_dir, of_module + of_state + _SMALL_FILES_BYTES)
        try:
            (temporary / TRAINING_STATE).mkdir(parents=True)
            with ema.applied(module) if ema is not None else contextlib.nullcontext():
                export(temporary)
            write_training_state(temporary / TRAINING_STATE, module, optimizer, ema, state)
            _seal(temporary, step, is_best)
            _put_in_place(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in _folders(checkpoints_dir):
            if _step(folder) > step:
                _say(f"{folder}: removed, it is later than step {step}, from which this run went on")
                _remove(folder)
        _update_links(checkpoints_dir)
        _rotate(checkpoints_dir, keep)
    return final


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: ExponentialMovingAverage | None
) -> dict[str, Any]:
    """Restore module, optimizer and average bit for bit.

    Args:
        folder: From `newest_valid`.
        module: Of the same architecture; not wrapped.
        optimizer: With the same groups.
        ema: Given exactly if it was given when the checkpoint was saved.

    Returns:
        The `state` that was saved.

    Raises:
        UserError: A file is missing or damaged, or a name, shape or dtype does not fit: names file and key.
    """
    return read_training_state(folder / TRAINING_STATE, module, optimizer, ema)


def newest_valid(checkpoints_dir: Path) -> Path | None:
    """The newest checkpoint whose files match their sums; standard error says what is wrong with newer ones.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        UserError: There are checkpoints, but none is whole. (Going on from nothing would hide that.)
    """
    problems = []
    for folder in _folders(checkpoints_dir):
        problem = what_is_wrong(folder)
        if problem is None:
            return folder
        problems.append(problem)
        _say(f"checkpoint not used: {problem}")
    if problems:
        raise UserError(
            f"none of the {len(problems)} checkpoints is whole; the newest: {problems[0]}",
            file=checkpoints_dir,
            fix="restore one from a copy, or start again in another run folder",
        )
    return None


def what_is_wrong(folder: Path, *, hashes: bool = True) -> str | None:
    """Check a checkpoint folder against its manifest.

    Args:
        folder: One checkpoint.
        hashes: False compares sizes only, which reads no data.

    Returns:
        The first fault with the file it is in, or None.
    """
    manifest_file, marker = folder / MANIFEST, folder / COMPLETE
    try:
        if not marker.is_file():
            return f"{folder}: {COMPLETE} is missing, the folder was not copied to its end"
        if marker.read_bytes() != sha256_file(manifest_file).encode():
            return f"{manifest_file}: does not match {COMPLETE}"
        files = read_json(manifest_file)["files"]
        for name, entry in files.items():
            file = folder / name
            if not file.is_file():
                return f"{file}: is missing"
            if file.stat().st_size != entry["size"]:
                return f"{file}: has {file.stat().st_size:,} bytes instead of {entry['size']:,}"
            if hashes and sha256_file(file) != entry["sha256"]:
                return f"{file}: sha256 differs from {MANIFEST}"
    except FileNotFoundError as error:
        return f"{error.filename}: is missing"
    except (OSError, UserError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest_file}: {error}"
    return None


def tidy(checkpoints_dir: Path) -> None:
    """Remove what a killed run left half-written and mend the links; call on the main process only."""
    if checkpoints_dir.is_dir():
        for path in checkpoints_dir.glob(".*.tmp"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        _update_links(checkpoints_dir)


def _seal(folder: Path, step: int, is_best: bool) -> None:
    """Flush everything, write the manifest, then the marker."""
    files = {}
    for path in sorted(folder.rglob("*")):
        sync(path)
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {
                "size": path.stat().st_size,
                "sha256": sha256_file(path),
            }
    manifest = {"step": step, "is_best": is_best, "files": files}
    text = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    for name, content in ((MANIFEST, text), (COMPLETE, hashlib.sha256(text).hexdigest().encode())):
        (folder / name).write_bytes(content)
        sync(folder / name)
    sync(folder)


def _put_in_place(temporary: Path, final: Path) -> None:
    aside = final.with_name(f"{final.name}.replaced")
    if final.exists():
        if aside.exists():
            _remove(aside)
        final.rename(aside)
    temporary.rename(final)
    sync(final.parent)
    if aside.exists():
        _remove(aside)


def _folders(checkpoints_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not checkpoints_dir.is_dir():
        return []
    folders = [path for path in checkpoints_dir.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name)]
    return sorted(folders, key=lambda path: (_step(path), "." not in path.name), reverse=True)


def _step(folder: Path) -> int:
    match = _FOLDER.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _update_links(checkpoints_dir: Path) -> None:
    """Point `last` to the newest and `best` to the newest that was the best when it was written."""
    whole = [folder for folder in _folders(checkpoints_dir) if what_is_wrong(folder, hashes=False) is None]
    best = [folder for folder in whole if read_json(folder / MANIFEST).get("is_best")]
    for name, targets in (("last", whole), ("best", best)):
        link = checkpoints_dir / name
        if link.exists() and not link.is_symlink():
            raise UserError("is in the place of a link", file=link, fix="move it somewhere else")
        if not targets:
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or os.readlink(link) != targets[0].name:
            temporary = checkpoints_dir / f".{name}.{os.getpid()}.tmp"
            temporary.symlink_to(targets[0].name)
            os.replace(temporary, link)
    sync(checkpoints_dir)


def _rotate(checkpoints_dir: Path, keep: int) -> None:
    """Remove all but the newest whole ones and the best."""
    folders = _folders(checkpoints_dir)
    whole = [folder for folder in folders if what_is_wrong(folder, hashes=False) is None]
    kept = {folder.name for folder in whole[: max(keep, _MIN_KEPT)]}
    best = checkpoints_dir / "best"
    if best.is_symlink():
        kept.add(os.readlink(best))
    for folder in folders:
        if folder.name not in kept:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; killed half-way it is no checkpoint any more, rather than a broken one."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed)


@contextlib.contextmanager
def _explained(final: Path) -> Iterator[None]:
    """Turn a full disk and a forbidden folder into errors that say what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        text = str(error)
        # safetensors passes the system's error on as text only.
        found = re.search(r"os error (\d+)", text)
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(final) from error
        if number == errno.EFBIG:
            raise too_large(final) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"cannot be written ({text})", file=final, fix="choose another run folder") from error
        raise


def _say(line: str) -> None:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not is_distributed or torch.distributed.get_rank() == 0:
        print(line, file=sys.stderr, flush=True)
