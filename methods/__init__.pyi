from .api.convenience import quantize as quantize
from .api.method import Fidelity as Fidelity
from .api.method import Method as Method
from .api.registry import METHODS as METHODS
from .api.registry import register_method as register_method
from .errors import MethodError as MethodError
