from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80  # without the docstring
# Longer by design; nothing else is. The loop is one function that a newcomer reads from top to bottom.
LONGER_FUNCTIONS = {"engine/loop.py:train": 120}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function of a file with its dotted name; functions inside functions belong to the outer one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from functions(node, prefix)


def length(node: Function) -> int:
    """Lines of a function from `def` to its end, its docstring left out."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_files_are_short(root: Path, python_files: list[Path]) -> None:
    sizes = {path.relative_to(root).as_posix(): len(path.read_text().splitlines()) for path in python_files}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_functions_are_short(code: dict[str, ast.Module]) -> None:
    sizes = {f"{file}:{name}": length(node) for file, tree in code.items() for name, node in functions(tree)}
    too_long = {name: size for name, size in sizes.items() if size > LONGER_FUNCTIONS.get(name, MAX_FUNCTION_LINES)}
    assert too_long == {}
    assert set(LONGER_FUNCTIONS) <= set(sizes)  # an exception for a function that is gone must go as well


def test_everything_public_is_documented(code: dict[str, ast.Module]) -> None:
    bare = []
    for file, tree in code.items():
        if not ast.get_docstring(tree):
            bare.append(file)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{file}:{node.name}")
        for name, function in functions(tree):
            private = any(part.startswith("_") for part in name.split("."))
            overload = any("overload" in ast.unparse(decorator) for decorator in function.decorator_list)
            if not private and not overload and not ast.get_docstring(function):
                bare.append(f"{file}:{name}")
    assert bare == []


def test_every_function_is_typed(code: dict[str, ast.Module]) -> None:
    untyped = []
    for file, tree in code.items():
        for name, node in functions(tree):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [argument for argument in arguments if argument.arg not in {"self", "cls"}]
            if node.returns is None or any(argument.annotation is None for argument in named):
                untyped.append(f"{file}:{name}")
    assert untyped == []


def test_init_files_hold_a_docstring_and_nothing_else(code: dict[str, ast.Module]) -> None:
    # The import path is the file path; importing a room imports none of its files.
    for file, tree in code.items():
        if file.endswith("__init__.py"):
            assert len(tree.body) == 1, f"{file} holds more than a docstring"
            assert ast.get_docstring(tree), f"{file} has no docstring"


def test_nothing_is_pickled(code: dict[str, ast.Module]) -> None:
    # Loading a pickle runs whatever code its author put into it: JSON, Arrow, Parquet and safetensors only.
    # One file of weights comes as a .pth: its bytes are checked against a digest, and only tensors are read.
    exception = ("data/video/extract.py", "torch.load")
    modules = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"torch.load", "torch.save", "torch.serialization.load", "torch.serialization.save"}
    found = []
    for file, tree in code.items():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = ["pickle"] if ast.unparse(node.value) != "False" else []
            for name in names:
                last = name.rsplit(".", 1)[-1]
                if name.split(".")[0] in modules or name in calls or last in {"read_pickle", "to_pickle"}:
                    found.append((file, name))
    assert [use for use in found if use != exception] == []
    loads = [
        node
        for node in ast.walk(code[exception[0]])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == exception[1]
    ]
    assert len(loads) == found.count(exception) == 1
    assert "weights_only=True" in [ast.unparse(keyword) for keyword in loads[0].keywords]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module of a file as written; a relative one with its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_model_files_import_each_other_relatively(code: dict[str, ast.Module], rooms: list[str]) -> None:
    # A saved checkpoint carries the encoder's and the processor's files to machines without vidsim.
    absolute = [
        f"{file}: {name}"
        for file, tree in code.items()
        if file.startswith("modeling/")
        for name in imports(tree)
        if name.startswith("vidsim.modeling") or name.split(".")[0] in rooms
    ]
    assert absolute == []

    carried: set[str] = set()
    waiting = {"config", "encoder", "processor"}
    while waiting:
        module = waiting.pop()
        carried.add(module)
        for name in imports(code[f"modeling/{module}.py"]):
            assert name.split(".")[0] != "vidsim", f"modeling/{module}.py is carried, yet imports {name}"
            assert not name.startswith(".."), f"modeling/{module}.py is carried, yet imports {name}"
            if name.startswith("."):
                assert "." not in name[1:], f"modeling/{module}.py imports {name}: carried files lie flat"
                if name[1:] not in carried:
                    waiting.add(name[1:])
    assert carried >= {"config", "encoder", "processor"}


def test_no_star_imports_and_no_bare_excepts(code: dict[str, ast.Module]) -> None:
    found = []
    for file, tree in code.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                found.append(f"{file}: {ast.unparse(node)}")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{file}:{node.lineno}: except:")
    assert found == []


def test_no_file_beside_an_entry_script_hides_a_module(root: Path, code: dict[str, ast.Module]) -> None:
    # `accelerate launch pretrain/run.py` puts pretrain/ first on the path: a pretrain/logging.py would be
    # imported in place of the standard library's.
    pins = (root / "constraints.txt").read_text(encoding="utf-8")
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins.splitlines() if "==" in line}
    installed = {
        module
        for module, distributions in packages_distributions().items()
        if pinned & {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    }
    scripts = [file for file, tree in code.items() if "__name__ == '__main__'" in ast.unparse(tree)]
    assert {"pretrain/run.py", "finetune/run.py"} <= set(scripts)
    folders = {(root / file).parent for file in scripts}
    names = {
        path.relative_to(root).as_posix(): path.stem
        for folder in folders
        for path in folder.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.name.startswith("_")
    }
    hidden = {path for path, name in names.items() if name in sys.stdlib_module_names | installed}
    assert hidden == set()


def test_no_machine_paths_and_no_registry_hosts(root: Path, project_files: list[Path]) -> None:
    folders = "|".join(["work", "tmp", "root", "home", "opt", "mnt", "Users", "scratch"])
    hosts = "|".join(
        name.replace(".", r"\.") + r"\." + ending
        for name, ending in [
            ("pypi", "org"),
            ("files.pythonhosted", "org"),
            ("registry.npmjs", "org"),
            ("download.pytorch", "org"),
            ("deb.debian", "org"),
        ]
    )
    pattern = re.compile(rf"(?<![\w.<>}}~-])/(?:{folders})/[\w.]|(?:{hosts})", re.ASCII)
    found = []
    for path in project_files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and Arrow shards
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:100]}")
    assert found == []
