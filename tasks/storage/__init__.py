"""The files of tasks: checkpoints, cards and weights of the bundled models, what is kept between processes.

Names are imported when they are asked for: identities of files do without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
