"""Recipes: YAML files and command-line options to a frozen dataclass, by jsonargparse.

Precedence: options on the command line, then the last `--config`, then the earlier ones, then the defaults.
Unknown keys and wrong types stop the run before anything else happens.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from vidsim.common.errors import UserError
from vidsim.engine.recipes import check_options, check_recipe, read_recipe


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A parsed configuration.

    Attributes:
        config: The dataclass, complete.
        yaml: The same as YAML with every default spelled out, for the run folder.
    """

    config: Any
    yaml: str


def parse_settings(
    schema: type,
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    examples: Sequence[str] = (),
    default_recipe: Path | None = None,
) -> Settings:
    """Parse `--config a.yaml --config b.yaml --field.subfield value`.

    Args:
        schema: A dataclass whose fields are the options.
        argv: Arguments; None takes those of the process.
        prog: Name in the help text.
        description: First lines of the help text.
        examples: Commands for its end.
        default_recipe: Taken when there are no arguments at all.

    Raises:
        UserError: A recipe is missing or malformed, a key is unknown (with the nearest known one), a type is wrong.
    """
    arguments = _spell_out_switches(list(sys.argv[1:] if argv is None else argv), schema)
    if not arguments and default_recipe is not None:
        arguments = ["--config", str(default_recipe)]
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config RECIPE.yaml ...] [--SETTING VALUE ...]",
        description=description,
        epilog="\n  ".join(["examples:", *examples]) if examples else None,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a recipe (YAML); may be given several times, the last wins")
    parser.add_class_arguments(schema, nested_key=None, fail_untyped=True)
    check_options(arguments, schema)
    for recipe in _recipes(arguments):
        check_recipe(read_recipe(recipe), schema, recipe)
    try:
        namespace = parser.parse_args(arguments)
        config = parser.instantiate(namespace)  # a part may refuse its values as it is made
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise _readable(str(error), _recipes(arguments)) from error
    resolved = schema(**{key: value for key, value in vars(config).items() if key != "config"})
    namespace.pop("config", None)
    return Settings(config=resolved, yaml=parser.dump(namespace, skip_validation=True, skip_unset=False))


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the lines of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return "".join(f"{indent}{line}\n" for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def _recipes(arguments: Sequence[str]) -> list[str]:
    recipes = [value.split("=", 1)[1] for value in arguments if value.startswith("--config=")]
    recipes += [arguments[i + 1] for i, value in enumerate(arguments[:-1]) if value == "--config"]
    return recipes


def _spell_out_switches(arguments: list[str], schema: type) -> list[str]:
    """`--resume` alone means `--resume true`."""
    switches = {f"--{field.name}" for field in dataclasses.fields(schema) if field.type in ("bool", bool)}
    result = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        result.append(argument)
        if argument in switches and following.startswith("--"):
            result.append("true")
    return result


def _readable(message: str, recipes: list[str]) -> UserError:
    """One line out of jsonargparse's several, for what `engine.recipes` leaves to it."""
    text = " ".join(message.split())
    if missing := re.search(r"required: (.+)", text):
        options = ", ".join(f"--{name.strip()}" for name in missing[1].split(","))
        return UserError(
            f"{options}: not given",
            file=", ".join(recipes) or None,
            fix="set them in a recipe (--config) or as options",
        )
    return UserError(text, file=", ".join(recipes) or None, fix="see --help for the settings and their types")
