"""The parts that methods are made of.

Names are imported when they are asked for: ``from vit_ptq_bench.methods import quantization as parts`` in a
method does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
