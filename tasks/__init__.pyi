from .api.network import Network as Network
from .api.options import TaskOptions as TaskOptions
from .api.registry import TASKS as TASKS
from .api.registry import register_task as register_task
from .api.task import Evaluation as Evaluation
from .api.task import LoadedModel as LoadedModel
from .api.task import Task as Task
from .errors import TaskError as TaskError
