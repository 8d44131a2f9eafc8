from .base import Family as Family
from .registry import FAMILIES as FAMILIES
from .registry import find_family as find_family
from .registry import register_family as register_family
from .registry import wrap_model as wrap_model
