"""Files of libraries that write for one user alone get the permissions that any file gets."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from vit_ptq_bench.permissions import make_ordinary


@pytest.mark.skipif(os.name != "posix", reason="other systems have other permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_decides(tmp_path, umask, mode):
    file = tmp_path / "weights.safetensors"
    before = os.umask(umask)
    try:
        save_file({"a": torch.zeros(2)}, file)
        make_ordinary(file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [file]
