"""The graph that is exported: a network with the preprocessing before it and the softmax after it.

    images         uint8 [N, C, S, S], as `kd.data.images.pixels.square` returns them
    probabilities  float32 [N, K] = softmax(logits((images / 255 - mean) / std) / T)

N is dynamic. C is 1 or 3; grey images are repeated to three channels inside the graph.
"""

import contextlib
import logging
import re
import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from kd.models import Classifier
from kd.system.errors import Problem
from kd.system.messages import first_line

INPUT = "images"
OUTPUT = "probabilities"
_EXAMPLES = 2  # a batch of one image would be taken for a constant
# How the exporters name an operator that they do not know.
_OPERATOR = re.compile(r"\b(?:aten|prims|torchvision|[a-z_]\w*)(?:::|\.)\w+(?:\.\w+)?")


class Deployed(nn.Module):
    """A network from uint8 images to calibrated probabilities.

    temperature  of the softmax: that of the run's validation split; 1 if none was fitted
    """

    def __init__(self, network: Classifier, temperature: float):
        super().__init__()
        self.network = network.module
        self.temperature = temperature
        self.register_buffer("scale", 1 / (255 * network.std))
        self.register_buffer("shift", -network.mean / network.std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities [N, K] of images, uint8 [N, C, S, S]."""
        colour = images.to(torch.float32).expand(-1, 3, -1, -1)
        logits = self.network(colour * self.scale + self.shift)
        return torch.softmax(logits / self.temperature, 1)


def exported(
    network: Classifier, temperature: float, shape: tuple[int, int, int]
) -> ExportedProgram:
    """Return the graph of a network that was never adapted to a device, for images of (C, S, S).

    It has no traces of the source: torch stores the paths of source files, the names of modules and
    an example of the input with each graph. Raises Problem, with the operator if torch names one,
    if the network cannot be exported.
    """
    module = Deployed(network, temperature).eval()
    example = torch.zeros(_EXAMPLES, *shape, dtype=torch.uint8)
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                module, (example,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}}
            )
        except Exception as error:  # of any type: the exporter runs the code of the network
            raise cannot_export(network, error) from None
    _remove_traces(program)
    return program


def _remove_traces(program: ExportedProgram) -> None:
    """Remove what torch notes about where each operator comes from."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                    node.meta.pop(key, None)


def cannot_export(network: Classifier, error: Exception) -> Problem:
    """Return the problem to raise for a network that torch cannot export."""
    unknown = _operator_in(error)
    why = f"its operator {unknown} cannot be exported" if unknown else first_line(error)
    return Problem(
        f"Network '{network.name}' cannot be exported ({why}). Use model.pt, or train another"
        " network."
    )


def _operator_in(error: BaseException) -> str:
    """Return the first operator that an error, or one of its causes, says is not supported."""
    while error is not None:
        for text in str(error).splitlines():
            if "not supported" in text or "No decompositions" in text or "No ONNX function" in text:
                found = _OPERATOR.search(text.partition("OpOverload")[2] or text)
                if found:
                    return found.group()
        error = error.__cause__ or error.__context__
    return ""


@contextlib.contextmanager
def quiet():
    """Return a context manager in which the exporters do not print warnings and logs."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
