"""argparse for every command: what is wrong with the arguments is one `UserError`, like any other bad input."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from vidsim.common.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """As argparse's, without guessing abbreviated options, and with errors of one line.

    Args:
        options: See `argparse.ArgumentParser`.
    """

    def __init__(self, **options: Any) -> None:
        """Make the parser."""
        super().__init__(allow_abbrev=False, **options)

    def parse_args(  # type: ignore[override]  # the overloads are about classes of namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse the arguments.

        Raises:
            UserError: An unknown option (with the closest that there is), a missing or malformed one.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        self._refuse_unknown(arguments)
        return super().parse_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into an error of one line."""
        found = re.fullmatch(r"argument (\S+): (.+)", message, re.DOTALL)
        fix = f"`{self.prog} --help` explains them"
        if found is None:
            raise UserError(message, fix=fix)
        name = found[1].rpartition("/")[2]  # -k/--num_results
        raise UserError(found[2], field=name, fix=fix)

    def _refuse_unknown(self, arguments: Iterable[str]) -> None:
        """Before anything else: a missing option is often one that is misspelt."""
        known = [name for action in self._actions for name in action.option_strings]
        for argument in arguments:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                fix = f"did you mean {close[0]}?" if close else f"`{self.prog} --help` lists them"
                raise UserError("no such option", field=name, fix=fix)
