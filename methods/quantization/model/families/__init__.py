"""Architecture families: which modules of a model are quantized, and in which role. One module a family."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
