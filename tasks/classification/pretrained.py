"""Whether timm's pretrained weights are on this machine: a look into the caches, without a network."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import try_to_load_from_cache

HUB = "hf-hub:"
"""Before the name of a repository of the Hugging Face Hub, and behind ``:`` a file where timm names one."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm takes from a repository where it names no file; the first that is there."""


def is_on_this_machine(source: str) -> bool:
    """Whether weights need not be fetched.

    Args:
        source: ``hf-hub:<repository>``, ``hf-hub:<repository>:<file>``, an address, or a file.
    """
    if source.startswith(HUB):
        name, _, file = source.removeprefix(HUB).partition(":")
        repository, _, revision = name.partition("@")
        return any(
            isinstance(try_to_load_from_cache(repository, one, revision=revision or None), str)
            for one in _names(file)
        )
    if "://" in source:
        return (_torch_cache() / Path(urlparse(source).path).name).is_file()
    return Path(source).exists()


def place_of(source: str) -> str:
    """Return a source in words."""
    if source.startswith(HUB):
        return f"the Hugging Face Hub ({source.removeprefix(HUB).partition(':')[0]})"
    return source


def _names(file: str) -> tuple[str, ...]:
    """A file, and what timm looks for in its place."""
    if not file:
        return FILES
    stem, suffix = os.path.splitext(file)
    return (f"{stem}.safetensors", file) if suffix == ".bin" else (file,)


def _torch_cache() -> Path:
    """Where `torch.hub` keeps what it has fetched, as torch finds it."""
    usual = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.environ.get("TORCH_HOME", usual)).expanduser() / "hub" / "checkpoints"
