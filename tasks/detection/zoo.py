"""Detectors by name or by config file."""

from __future__ import annotations

import ast
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.identity import file_id
from vit_ptq_bench.tasks.storage.kept import recipe_key

CONFIGS = Path(__file__).parent / "configs"

BUNDLED = ("mask_rcnn_swin_mini", "cascade_mask_rcnn_swin_mini")

BUNDLED_SCALE = (160, 160)
"""Long and short side at most of their images, as their configs say, which are not read to tell it."""

COCO_MODELS = {
    "mask_rcnn_swin_t": "mmdet:swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "mask_rcnn_swin_s": "mmdet:swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py",
    "cascade_mask_rcnn_swin_t": "cascade_mask_rcnn_swin_t.py",
    "cascade_mask_rcnn_swin_s": "cascade_mask_rcnn_swin_s.py",
}
"""The detectors of the field's tables; the config of mmdet's package or of this one."""


def config_path(name: str) -> Path:
    """Return the config file of a detector.

    Args:
        name: a name of `BUNDLED` or `COCO_MODELS`, or the path of a config file (``.py``).

    Raises:
        TaskError: there is no such name, or no such file.
    """
    if name in BUNDLED:
        return CONFIGS / f"{name}.py"
    if name in COCO_MODELS:
        place, _, inner = COCO_MODELS[name].rpartition(":")
        return mmdet_configs() / inner if place else CONFIGS / inner
    if not name.endswith(".py"):
        raise TaskError(
            f"unknown detector {name!r}; there are {', '.join((*BUNDLED, *COCO_MODELS))}, "
            "or give the path of an mmdet config file"
        )
    if not Path(name).is_file():
        raise TaskError(f"{name}: no such config file")
    return Path(name)


def is_config_file(name: str) -> bool:
    """Whether a detector is named by a config file, which is a program that runs when it is read."""
    return name not in BUNDLED and name not in COCO_MODELS and name.endswith(".py")


def config_id(name: str) -> str:
    """Return what identifies the config file ``name`` with all files that it inherits from (``_base_``).

    Raises:
        TaskError: one of them is missing, or names what it inherits in another way than as texts.
    """
    ids: list[str] = []
    _add_config(config_path(name), ids, ())
    return " ".join(ids)


def builders_id() -> str:
    """Return what identifies the code that makes a detector of a config file."""
    package = __name__.rpartition(".")[0]
    names = ("datasets", "models", "openmmlab", "operators", "plain_vit")
    sources = [f"{package}.{name}" for name in names]
    mmcv = " ".join(f"{name}=={_installed(name)}" for name in ("mmcv", "mmcv-lite"))
    return f"{recipe_key(sources, ('mmdet', 'mmengine'))} {mmcv}"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _add_config(path: Path, ids: list[str], above: tuple[Path, ...]) -> None:
    """Note a file and what it inherits; nothing in them is run."""
    if path in above:
        raise TaskError(f"{path}: this config inherits from itself")
    if not path.is_file():
        raise TaskError(f"{path}: no such config file, which {above[-1]} inherits from")
    ids.append(file_id(path))
    for base in _bases(path):
        if "::" in base:  # of a package, whose configs are those of its version
            ids.append(f"{base}=={_version(base.partition('::')[0], path)}")
        else:
            _add_config((path.parent / base).resolve(), ids, (*above, path))


def _version(package: str, path: Path) -> str:
    found = _installed(package)
    if found is None:
        raise TaskError(f"{path}: inherits from {package}, which is not installed")
    return found


def _bases(path: Path) -> list[str]:
    """The values of ``_base_``: a text or a list of texts, as mmengine reads it without running the file."""
    if path.suffix != ".py":
        return []
    try:
        tree = ast.parse(path.read_bytes(), str(path))
        found = [
            ast.literal_eval(statement.value)
            for statement in tree.body
            if isinstance(statement, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "_base_" for t in statement.targets)
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TaskError(
            f"{path}: not a readable mmdet config ({type(error).__name__}: {error})"
        ) from error
    values = found[0] if found else []
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise TaskError(f"{path}: _base_ must be the path of a config file, or a list of paths")
    return list(values)


def mmdet_configs() -> Path:
    """Return the folder of the config files in mmdet's package.

    Raises:
        TaskError: mmdet is not installed.
    """
    spec = importlib.util.find_spec("mmdet")
    if spec is None or spec.origin is None:
        raise TaskError("mmdet is not installed; install the project with its dependencies")
    return Path(spec.origin).parent / ".mim" / "configs"
