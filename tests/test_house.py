"""The shape of the house: who may import whom, and how large files and functions may be.

Read from the syntax trees of the sources, so that nothing is imported. The configs of the detectors are
left out: they are data, in the form that mmdet's configs have.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "vit_ptq_bench"
FOLDERS = ("bench", "methods", "tasks")

REST = "*"
"""In a tuple of floors: every part of the package that is named on no other floor."""

FLOORS = {
    # `methods` and `tasks` know nothing of the harness that judges them, nor of each other, so that either
    # can be used without the rest.
    PACKAGE: (
        ("errors", "guests", "permissions", "values", "version"),
        ("registry",),
        ("methods", "tasks"),
        ("bench",),
        ("__main__",),
    ),
    # The way of the data: what is asked for (planning) is run (execution) and noted (records), and tables
    # are made of the notes (report). Records lie lowest: they are read long after the code that wrote them
    # has changed. Making tables needs no run; a sweep ends with its tables. The contract tries methods
    # without any of them. The site of the documentation shows the registry and the tables.
    f"{PACKAGE}.bench": (
        ("errors",),
        ("records",),
        ("planning", "sharing"),
        ("report", "contract"),
        ("execution", "site", "simulation", "following", "deployment"),
        ("tuning",),
        ("cli",),
        ("__main__",),
    ),
    # A paper is a recipe over parts: it uses the contract and the parts, and nobody uses it.
    f"{PACKAGE}.methods": (("errors",), ("quantization",), ("api",), (REST,)),
    # Bits describe quantizers, quantizers are built into a model, a model is calibrated; the ways to better
    # scales and weights need calibration and not each other; a transform may solve for weights,
    # bits are shared out by what searched grids lose;
    # reconstruction starts where they end, and corrections of blocks go through a model as it does.
    f"{PACKAGE}.methods.quantization": (
        ("bits", "listed_names"),
        ("table_changes",),
        ("quantizers",),
        ("model",),
        ("calibration", "storage", "deployment"),
        ("reparameterization", "search", "error_compensation", "inspection"),
        ("transforms", "allocation"),
        ("closed_form",),
        ("reconstruction",),
        ("correction",),
    ),
    # Storage reads weights and keeps what was computed, for images of any kind; detection takes its image
    # cache from classification. Tasks (one module each) are put together from the parts of their kind;
    # training uses tasks.
    f"{PACKAGE}.tasks": (
        ("errors",),
        ("api",),
        ("storage",),
        ("classification",),
        ("detection",),
        (REST,),
        ("training",),
    ),
}
"""Package -> its parts by floor, from the lowest up: a part imports from lower floors only."""

NARROWED = {
    # The tables say how things are called as the plan does, and ask nothing else of it.
    (f"{PACKAGE}.bench.report", f"{PACKAGE}.bench.planning"): {f"{PACKAGE}.bench.planning.names"},
}
"""(importing part, imported part) -> the only modules of it that may be imported."""

MAX_FILE_LINES = 420
MAX_MEDIAN_LINES = 120  # of files other than __init__.py, which are nearly empty
MAX_FUNCTION_LINES = 40

LONG_FUNCTIONS: dict[str, str] = {}
"""module:function -> why it may be longer."""

UNPICKLING = "vit_ptq_bench.tasks.detection.unpickle"
"""The one module that may run what a file contains: in a process of its own, behind ``--trust``."""


@dataclass(frozen=True)
class Module:
    """A source file.

    Attributes:
        name: dotted name under which it is imported.
        path: the file.
        tree: its syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def lines(self) -> int:
        return len(self.path.read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True)
class Import:
    """One module importing another of the project; ``later``: inside a function, or for types only."""

    source: str
    target: str
    later: bool
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Module]:
    """All modules of the project, by name."""
    found = [*(ROOT / PACKAGE).glob("*.py")]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*.py") if "configs" not in path.parts]
    named = {}
    for path in found:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        named[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return named


@cache
def lazy_names(package: str) -> dict[str, str]:
    """Name -> module that defines it, of a package whose names stand in a stub beside it."""
    module = modules().get(package)
    stub = module.path.with_suffix(".pyi") if module else ROOT / "missing"
    if not stub.is_file():
        return {}
    tree = ast.parse(stub.read_text(encoding="utf-8"), str(stub))
    return {
        alias.asname or alias.name: f"{package}.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@cache
def imports() -> tuple[Import, ...]:
    """Every import of one module of the project by another."""
    return tuple(found for module in modules().values() for found in _imports_of(module))


def _imports_of(module: Module) -> Iterator[Import]:
    for node, later in _statements(module.tree, later=False):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            targets = [target for alias in node.names for target in _targets(module, node, alias)]
        for target in targets:
            if target in modules() and target != module.name:
                yield Import(module.name, target, later, node.lineno)


def _statements(node: ast.AST, later: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements below ``node``, and whether they do without being carried out at import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, later
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _statements(child, later=True)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _statements(child, later or inside)


def _targets(module: Module, node: ast.ImportFrom, alias: ast.alias) -> Iterator[str]:
    """The modules that ``from package import name`` imports."""
    origin = node.module or ""
    if node.level:
        base = module.name.split(".")
        base = base[: len(base) - node.level + (1 if module.is_package else 0)]
        origin = ".".join([*base, *([node.module] if node.module else [])])
    submodule = f"{origin}.{alias.name}"
    yield submodule if submodule in modules() else lazy_names(origin).get(alias.name, origin)


def part_of(package: str, module: str) -> str | None:
    """First name below ``package`` of a module in it: "" for the package itself, None elsewhere."""
    if module == package:
        return ""
    return module.removeprefix(f"{package}.").split(".")[0] if _lies_in(module, package) else None


def _lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def floor_of(package: str, part: str) -> int:
    """Index of the floor on which a part of a package lies; its ``__init__`` lies above all of them.

    So a package's face may name what it is made of, and its parts do not look at their face.
    """
    floors = FLOORS[package]
    if part == "":
        return len(floors)
    for index, parts in enumerate(floors):
        if part in parts:
            return index
    rest = [index for index, parts in enumerate(floors) if REST in parts]
    assert rest, f"{package}.{part} is new: give it a floor in FLOORS"
    return rest[0]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, each once."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in edges.get(waiting.pop(), set()) - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    reach = {name: reached(name) for name in edges}
    groups = {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in edges
        if name in reach[name]
    }
    return [sorted(group) for group in groups]


def graph(with_later: bool) -> dict[str, set[str]]:
    """Module -> what it imports while it is imported, or at any time."""
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        if with_later or not found.later:
            edges[found.source].add(found.target)
    return edges


def functions(
    module: Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method of a module, by its dotted name."""

    def below(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            name = f"{prefix}{child.name}" if named else prefix
            if named and not isinstance(child, ast.ClassDef):
                yield name, child
            yield from below(child, f"{name}." if named else prefix)

    yield from below(module.tree, "")


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_the_sources_are_found():
    assert len(modules()) > 100 and len(imports()) > 300
    assert {"vit_ptq_bench.bench.cli", "vit_ptq_bench.methods.minmax"} <= set(modules())
    assert lazy_names("vit_ptq_bench.methods")["Method"] == "vit_ptq_bench.methods.api.method"


def test_no_two_modules_import_each_other():
    assert circles(graph(with_later=False)) == []


def test_no_circle_is_hidden_in_imports_made_later():
    assert circles(graph(with_later=True)) == []


def test_circles_finds_a_circle():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}
    assert sorted(circles(edges)) == [["b", "c"], ["d"]]


@pytest.mark.parametrize("later", [False, True], ids=["at-import", "later"])
@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_downwards(package, later):
    wrong = []
    for found in imports():
        source, target = part_of(package, found.source), part_of(package, found.target)
        if found.later != later or source is None or target is None or source == target:
            continue
        if floor_of(package, target) >= floor_of(package, source):
            wrong.append(str(found))
    assert wrong == []


@pytest.mark.parametrize("package", FLOORS)
def test_every_named_part_is_there(package):
    there = {part_of(package, name) for name in modules()} - {None, ""}
    named = {part for parts in FLOORS[package] for part in parts} - {REST}
    assert named <= there


@pytest.mark.parametrize(("source", "target"), NARROWED)
def test_some_rooms_open_one_door_only(source, target):
    wrong = [
        str(found)
        for found in imports()
        if _lies_in(found.source, source)
        and _lies_in(found.target, target)
        and found.target not in NARROWED[source, target]
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_are_absolute(folder):
    wrong = [
        f"{module.name}:{node.lineno}"
        for module in modules().values()
        if _lies_in(module.name, f"{PACKAGE}.{folder}")
        for node, _ in _statements(module.tree, later=False)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_nobody_imports_the_folders_by_their_old_names(folder):
    wrong = [
        f"{module.name}:{node.lineno}"
        for module in modules().values()
        for node, _ in _statements(module.tree, later=False)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
        if name.split(".")[0] == folder
    ]
    assert wrong == []


def test_no_file_is_long():
    long = {m.name: m.lines for m in modules().values() if m.lines > MAX_FILE_LINES}
    assert long == {}


def test_the_usual_file_is_short():
    lines = [module.lines for module in modules().values() if not module.is_package]
    assert median(lines) <= MAX_MEDIAN_LINES


def test_no_function_is_long():
    long = {
        f"{module.name}:{name}": code_lines(function)
        for module in modules().values()
        for name, function in functions(module)
        if code_lines(function) > MAX_FUNCTION_LINES
    }
    assert long.keys() - LONG_FUNCTIONS.keys() == set(), long
    assert LONG_FUNCTIONS.keys() <= long.keys(), "these are short enough now"


def test_abstract_methods_are_abstract():
    """`abc` refuses to build a class that lacks one, long before the line is reached."""
    wrong = [
        f"{module.name}:{node.lineno}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Raise)
        and node.exc is not None
        and (
            ast.unparse(node.exc) in ("NotImplementedError", "NotImplementedError()")
            or ast.unparse(node.exc).startswith("AssertionError('defined by")
        )
    ]
    assert wrong == []


def test_loading_a_file_runs_nothing_of_it():
    wrong = [
        f"{module.name}:{node.lineno}"
        for module in modules().values()
        if module.name != UNPICKLING
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and not any(
            word.arg == "weights_only" and ast.unparse(word.value) == "True"
            for word in node.keywords
        )
    ]
    assert wrong == []
    assert UNPICKLING in modules()


def test_every_module_says_what_it_is():
    wrong = []
    for module in modules().values():
        text = ast.get_docstring(module.tree)
        if not text or text.startswith("What "):
            wrong.append(f"{module.name}: {text.splitlines()[0] if text else 'no docstring'}")
    assert wrong == []
