"""Tasks: data, models and metrics that methods are judged by; one module each, found by the registry.

Names are imported when they are asked for, so that task cards do without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
