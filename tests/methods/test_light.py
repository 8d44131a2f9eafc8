"""What a method says of itself is had without torch."""

import subprocess
import sys

ASK = """
import sys
import vit_ptq_bench.methods
from vit_ptq_bench.methods.quantization.bits import BitWidth

known = vit_ptq_bench.methods.METHODS.module_dict
assert not vit_ptq_bench.methods.METHODS.broken
for cls in known.values():
    for profile in (None, *cls.profiles):
        method = cls.create({} if profile is None else {"profile": profile})
        for protocol in ("equal", "authors"):
            table = method.bit_table(BitWidth(4, 4), protocol)
            assert table.to_dict() and method.convention(table)
        assert isinstance(method.notes(), tuple)
assert len(known) > 15
heavy = {"torch", "timm", "mmdet", "scipy", "pandas", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""


def test_method_cards_do_without_torch():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_parts_is_there():
    from vit_ptq_bench.methods import quantization as parts

    missing = [name for name in parts.__all__ if getattr(parts, name, None) is None]
    assert parts.__all__ and not missing
