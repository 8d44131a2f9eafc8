"""Installing the project takes the import name `vit_ptq_bench` and no other.

Wheel, source distribution and editable install are built by setuptools' own hooks, from a copy of the tree
and without a network, and installed into an environment that reads its dependencies from this one.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "methods", "tasks")
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what a distribution is made from."""
    target = tmp_path_factory.mktemp("tree")
    for folder in (*FOLDERS, "vit_ptq_bench"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, target)
    return target


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel."""
    return install(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def editable(tree, tmp_path_factory) -> Path:
    """The Python of an environment with an editable install of the copied tree."""
    wheel = build("editable", tree, tmp_path_factory.mktemp("editable"))
    return install(wheel, tmp_path_factory.mktemp("edited"))


@pytest.fixture(params=["installed", "editable"])
def python(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def neighbour(tmp_path) -> Path:
    """A research folder that has packages of our folders' names."""
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(f"OWNER = 'neighbour of {folder}'\n")
    return tmp_path


def build(kind: str, tree: Path, target: Path) -> Path:
    """Build a distribution (wheel, sdist or editable) of ``tree``, as pip and uv do."""
    hook = (
        "import sys; from setuptools import build_meta as backend; "
        f"print(backend.build_{kind}(sys.argv[1]))"
    )
    output = run(Path(sys.executable), tree, "-c", hook, str(target))
    return target / output.splitlines()[-1]


def install(wheel: Path, folder: Path) -> Path:
    """Unpack a wheel into a new environment; return its Python."""
    venv.EnvBuilder(symlinks=True).create(folder)
    names = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=names))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Their folders alone: .pth files in them, which could lead to the sources, are not read.
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(ours) + "\n")
    return Path(sysconfig.get_path("scripts", scheme="venv", vars=names)) / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    """Run Python in a folder without this environment's own paths; return what it prints."""
    settings = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *arguments],
        cwd=folder,
        env=settings | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def packed(wheel: Path) -> dict[str, int]:
    """Name -> checksum of the files in a wheel, without those that describe it."""
    with zipfile.ZipFile(wheel) as archive:
        files = {entry.filename: entry.CRC for entry in archive.infolist()}
    return {name: check for name, check in files.items() if ".dist-info/" not in name}


def test_the_wheel_holds_the_package_and_nothing_else(tree, wheel):
    there = {
        str(Path(folder, name).relative_to(tree))
        for folder, _, names in os.walk(tree / "vit_ptq_bench", followlinks=True)
        for name in names
        if "__pycache__" not in folder
    }
    assert set(packed(wheel)) == there
    for name in (
        "py.typed",
        "methods/quantization/__init__.pyi",
        "bench/suites/quick.toml",
        "bench/simulation/usual_costs.json",
        "tasks/weights/vit_mini.safetensors",
        "tasks/detection/configs/mask_rcnn_swin_mini.py",
    ):
        assert f"vit_ptq_bench/{name}" in there


def test_the_wheel_names_one_package_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        about = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        folder = about.rpartition("/")[0]
        assert archive.read(f"{folder}/top_level.txt").split() == [b"vit_ptq_bench"]
        assert b"bench = vit_ptq_bench.bench.cli:main" in archive.read(f"{folder}/entry_points.txt")
        assert b"License-Expression: Apache-2.0" in archive.read(about)


def test_a_source_distribution_makes_the_same_wheel(tree, wheel, tmp_path):
    source = build("sdist", tree, tmp_path)
    with tarfile.open(source) as archive:
        assert not any(member.issym() or member.islnk() for member in archive)
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    assert packed(build("wheel", unpacked, tmp_path)) == packed(wheel)


def test_the_code_comes_from_where_it_was_installed(tree, installed, editable, tmp_path):
    program = "import vit_ptq_bench.methods as package; print(package.__file__)"
    assert "site-packages" in run(installed, tmp_path, "-c", program)
    assert run(editable, tmp_path, "-c", program).startswith(str(tree))


def test_a_neighbour_keeps_its_own_names(python, neighbour):
    assert "quick" in run(python, neighbour, "-m", "vit_ptq_bench", "list", "suites")
    program = (
        "import vit_ptq_bench.methods, vit_ptq_bench.tasks, vit_ptq_bench.bench.cli\n"
        + "".join(f"import {folder}; print({folder}.OWNER)\n" for folder in FOLDERS)
    )
    said = run(python, neighbour, "-c", program).splitlines()
    assert said == [f"neighbour of {folder}" for folder in FOLDERS]


def test_a_sweep_runs_beside_a_neighbour(installed, neighbour):
    """Its worker processes, too, have the neighbour's folder on their path."""
    words = (
        "run bundled --models vit_mini --methods minmax --bits W4A4 --workers 1 --output results"
    )
    narrowed = "--limit 50 --calibration-images 4"
    run(installed, neighbour, "-m", "vit_ptq_bench", *words.split(), *narrowed.split())
    assert "| minmax" in (neighbour / "results" / "leaderboard.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", FOLDERS)
def test_installing_takes_no_other_name(python, folder, tmp_path):
    program = f"import importlib.util as u, vit_ptq_bench.{folder}; print(u.find_spec({folder!r}))"
    assert run(python, tmp_path, "-c", program).strip() == "None"


def test_the_command_is_installed(python, tmp_path):
    program = (
        "from importlib.metadata import distribution as d\n"
        "point, = d('vit-ptq-bench').entry_points.select(group='console_scripts')\n"
        "print(point.name, point.load().__module__)"
    )
    assert run(python, tmp_path, "-c", program).split() == ["bench", "vit_ptq_bench.bench.cli"]


def test_an_editable_install_sees_new_files(tree, editable, tmp_path):
    """The registry finds methods with `pkgutil` too."""
    names = (
        "import pkgutil, vit_ptq_bench.methods as package\n"
        "print('new_one' in {module.name for module in pkgutil.iter_modules(package.__path__)})"
    )
    assert run(editable, tmp_path, "-c", names).strip() == "False"
    new = tree / "methods" / "new_one.py"
    new.write_text("WORD = 'seen'\n", encoding="utf-8")
    try:
        assert run(editable, tmp_path, "-c", names).strip() == "True"
        program = "from vit_ptq_bench.methods.new_one import WORD; print(WORD)"
        assert run(editable, tmp_path, "-c", program).strip() == "seen"
    finally:
        new.unlink()


def requirements() -> list[Requirement]:
    """Everything that the project, its extras and its build ask for."""
    project = METADATA["project"]
    lines = [*project["dependencies"], *METADATA["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.name != project["name"]]  # an extra that holds another


def pins() -> dict[str, str]:
    """Canonical name -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.+]+)", line) for line in lines]
    assert all(pairs), "constraints.txt holds exact versions only"
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_a_range_with_a_pin_in_it(requirement):
    assert requirement.specifier, "say which versions are known to work"
    assert not any(part.operator in ("==", "===") for part in requirement.specifier)
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


WITH_EXTRA = {
    ROOT / "bench" / "site": "docs",
    ROOT / "bench" / "execution" / "executors": "slurm",
    ROOT / "methods" / "quantization" / "deployment": "onnx",
    ROOT / "tasks" / "classification" / "shards": "parquet",
}
"""Folders that import what an extra brings, and is asked for where it is used."""


def test_what_is_imported_is_declared():
    everybody = names_of(METADATA["project"]["dependencies"])
    extras = METADATA["project"]["optional-dependencies"]
    known = packages_distributions()
    missing = {
        top
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for top in imported(path) - sys.stdlib_module_names - {"vit_ptq_bench"}
        if not {canonicalize_name(name) for name in known.get(top, [top])}
        & everybody.union(
            *(names_of(extras[e]) for folder, e in WITH_EXTRA.items() if folder in path.parents)
        )
    }
    assert missing == set()


def names_of(requirements: list[str]) -> set[str]:
    """Canonical names of what is required."""
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
