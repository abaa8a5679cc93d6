"""How a command ends: one line for what the user can mend, a traceback for what only a developer can."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from vidsim.common.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
DEBUG_FLAG = "--debug"


def run_entry(main: Callable[[list[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and turn its ending into an exit code, for `sys.exit(run_entry(main))`.

    Bad input (`UserError`) prints one line `error: ...` and gives 2; Ctrl-C prints one line and gives 130; a
    reader that went away (`vidsim inspect data | head`) gives 141 and no word. Any other exception is our own
    mistake and keeps its traceback. `--debug` anywhere before a `--` is taken out and shows the traceback of
    the first two as well.

    Args:
        main: Takes the arguments without the program's name; returns the exit code.
        argv: The arguments; those of this process if None.
    """
    arguments, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    try:
        code = main(arguments)
        sys.stdout.flush()  # a broken pipe shows here, not in the interpreter's shutdown
        return code
    except UserError as error:
        return _end(f"error: {error}", EXIT_USER_ERROR, debug)
    except KeyboardInterrupt:
        return _end("interrupted", EXIT_INTERRUPTED, debug)
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE


def leave(code: int) -> NoReturn:
    """End the process with an exit code; one of several at once, without taking the interpreter apart.

    A thread of torch's process group that lets go of a tensor while the interpreter ends aborts the process, about once
    in twenty runs of two gloo processes: the run is saved, but its exit code says that it failed.
    """
    if "LOCAL_RANK" not in os.environ:  # set by torchrun and `accelerate launch`
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != DEBUG_FLAG]
    return kept + arguments[end:], len(kept) < end


def _end(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone; the error still has its reader
        _discard_output()
    print(line, file=sys.stderr, flush=True)
    return code


def _discard_output() -> None:
    """What is still buffered has nowhere to go; without this the interpreter complains as it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
