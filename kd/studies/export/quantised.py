"""model.int8.onnx: weights and activations in 8 bits, by onnxruntime's static quantisation (QDQ).

Activations have an offset and a scale for each tensor, weights a scale for each output channel
(Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342). The ranges of the
activations are the lowest and highest values on images of the train split.
"""

import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kd.studies.export.graph import INPUT, quiet
from kd.studies.export.onnx_file import remove_traces

CALIBRATION_IMAGES = 256
_BATCH = 32
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# Normalisation, softmax and activations that are not piecewise linear stay in float.
_QUANTISED = (
    *_WEIGHTED,
    *("Add", "Mul", "Relu", "Clip", "Concat", "Flatten", "Reshape", "Transpose", "Squeeze"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Slice", "Split", "Pad"),
)


def needs_reduced_range() -> bool:
    """Return whether weights must have 7 bits on this machine.

    Without the instructions VNNI, x86 processors add two products of 8 bits in 16 bits, which
    overflow.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    known = torch.cpu.get_capabilities()
    return not (known.get("avx512_vnni", False) or known.get("avx_vnni", False))


def prepared(content: bytes):
    """Return an ONNX file as an onnx.ModelProto that can be quantised.

    Its shapes are inferred, and batch normalisation is part of the convolution before it.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "prepared.onnx"
        quant_pre_process(onnx.load_from_string(content), file)
        return onnx.load(file)


def quantised(model, images: np.ndarray, float_layers: tuple[str, ...] = ()) -> bytes:
    """Return a model of `prepared` with weights and activations of 8 bits, as an ONNX file.

    images        uint8 [N, C, S, S], from which the ranges of the activations are measured
    float_layers  names of layers that stay in float, see `first_and_last`
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "quantised.onnx"
        given = Path(folder) / "float.onnx"  # of a model in memory, onnxruntime takes the weights
        onnx.save(model, given)
        quantize_static(
            given,
            file,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            reduce_range=needs_reduced_range(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*_before_first_layer(model), *float_layers],
        )
        result = onnx.load(file)
    remove_traces(result)
    return result.SerializeToString(deterministic=True)


def _reader(images: np.ndarray):
    """Return images as onnxruntime's calibration reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = _batches(images)

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    return Reader()


def _batches(images: np.ndarray) -> Iterator[dict]:
    for start in range(0, len(images), _BATCH):
        yield {INPUT: images[start : start + _BATCH]}


def first_and_last(model) -> tuple[str, ...]:
    """Return the names of the first and the last layer with weights: those that lose most.

    A layer with weights is a convolution or a product with a constant matrix.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    layers = [
        node.name
        for node in model.graph.node
        if node.op_type in _WEIGHTED and constants & set(node.input)
    ]
    return tuple(dict.fromkeys([layers[0], layers[-1]])) if layers else ()


def _before_first_layer(model) -> list[str]:
    """Return the names of the nodes that prepare the image: those before any layer with weights."""
    prepares = {INPUT, *(tensor.name for tensor in model.graph.initializer), ""}
    found = []
    for node in model.graph.node:  # in the order of their execution
        if node.op_type not in _WEIGHTED and prepares.issuperset(node.input):
            prepares |= set(node.output)
            found.append(node.name)
    return found
