"""ONNX files as modules, run by ONNX Runtime or OpenVINO on this machine's processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.bench.deployment.extras import brought
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.guests import one_line
from vit_ptq_bench.methods.quantization.model.structure import Output

ROUNDS, WARM_UP = 15, 3
"""How often an image is timed with each model, and goes through it before."""


FULL_ACTIVATIONS = "session.qdq_matmulnbits_accuracy_level"
"""ONNX Runtime's setting of the arithmetic in such products: 1 is float32, 4, its own choice, int8."""


LONGEST_REASON = 300


@contextmanager
def _told(title: str, verb: str, path: Path) -> Iterator[None]:
    """Say in a sentence what a runtime cannot do with a file, and what the user can."""
    try:
        yield
    except Exception as error:  # each runtime raises its own kinds
        raise BenchError(
            f"{title} cannot {verb} {path}, so export it in another form (--opset 18 has fewer operators, "
            "--precision float64 none for activations) or install a newer runtime; it says: "
            f"{one_line(error)[:LONGEST_REASON]}"
        ) from error


class OnnxRuntime(nn.Module):
    """A file of one input in ONNX Runtime.

    Args:
        path: the file.
        threads: that one operation uses.

    Raises:
        BenchError: onnxruntime is not installed, or cannot load the file, or later not run it.
    """

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        runtime = brought("onnx", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Else a product of floats and a dequantized weight is computed on floats rounded to 8 bits.
        options.add_session_config_entry(FULL_ACTIVATIONS, "1")
        self.path, self.title = path, f"ONNX Runtime {runtime.__version__}"
        with _told(self.title, "load", path):
            self.session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )

    def forward(self, images: Tensor) -> Output:
        """Return what the file says of ``images`` [b, 3, H, W], float32: one tensor or several."""
        (name,) = (one.name for one in self.session.get_inputs())
        with _told(self.title, "run", self.path):
            return _tensors(self.session.run(None, {name: images.contiguous().numpy()}))


class OpenVino(nn.Module):
    """A file of one input in OpenVINO; arguments and errors as of `OnnxRuntime`."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        runtime = brought("openvino", "openvino")
        core = runtime.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            # Else, as in ONNX Runtime, floats that meet a dequantized weight are rounded to 8 bits.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        self.path, self.title = path, f"OpenVINO {runtime.__version__.partition('-')[0]}"
        with _told(self.title, "load", path):
            self.compiled: Any = core.compile_model(core.read_model(path), "CPU", settings)

    def forward(self, images: Tensor) -> Output:
        """Return what the file says of ``images`` [b, 3, H, W], float32: one tensor or several."""
        with _told(self.title, "run", self.path):
            return _tensors(self.compiled(images.contiguous().numpy()).values())


def _tensors(arrays: Iterable[Any]) -> Output:
    outputs = tuple(torch.from_numpy(array) for array in arrays)
    return outputs[0] if len(outputs) == 1 else outputs


class Watched(nn.Module):
    """A classifier that notes what it says.

    Attributes:
        predictions: class of every image so far, in the order of the calls.
    """

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.predictions: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's logits."""
        logits = self.module(images)
        self.predictions += logits.argmax(dim=1).tolist()
        return logits

    def alike(self, other: Watched) -> float:
        """Return the share of the images, in percent, that both say the same of."""
        pairs = zip(self.predictions, other.predictions, strict=True)
        return 100 * sum(a == b for a, b in pairs) / len(self.predictions)


@torch.no_grad()
def milliseconds(modules: Mapping[str, nn.Module], image: Tensor) -> dict[str, float]:
    """Return the median milliseconds that each of several models takes for one image.

    They take turns, so that what else goes on on the machine meets all of them.

    Args:
        modules: by name.
        image: float32 [1, 3, H, W].
    """
    spent: dict[str, list[float]] = {name: [] for name in modules}
    for number in range(WARM_UP + ROUNDS):
        for name, module in modules.items():
            before = perf_counter()
            module(image)
            if number >= WARM_UP:
                spent[name].append(perf_counter() - before)
    return {name: 1000 * median(seconds) for name, seconds in spent.items()}
