"""Parts of classification tasks: images on disk, bundled pictures, timm's models, accuracy.

Names are imported when they are asked for, so that task cards do without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
