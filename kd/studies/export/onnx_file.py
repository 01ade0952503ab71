"""model.onnx: the exported graph as ONNX, without traces of the source."""

import numpy as np
import torch
from torch.export import ExportedProgram

from kd.models import Classifier
from kd.studies.export.graph import INPUT, OUTPUT, cannot_export, quiet
from kd.system.errors import Problem

# The version that torch's exporter is written for; onnxruntime reads it from 1.14 on.
OPSET = 18
ONNX = "model.onnx"
_LARGEST = 2**31 - 1  # bytes of a file in protobuf
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raise Problem if a package that --export needs is missing."""
    for name in PACKAGES:
        try:
            __import__(name)
        except ImportError:
            raise Problem(
                f"--export needs the package {name}, which is missing. Run: python -m pip install"
                f" {' '.join(PACKAGES)}"
            ) from None


def to_onnx(program: ExportedProgram, network: Classifier) -> bytes:
    """Return a graph of `graph.exported` as the content of an ONNX file.

    Raises Problem, with the operator, if ONNX does not have an operator of the network, and if the
    file would be larger than 2 GiB.
    """
    with quiet():
        try:
            converted = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # of any type
            raise cannot_export(network, error) from None
    model = converted.model_proto
    if model.ByteSize() > _LARGEST:
        raise Problem(
            f"Network '{network.name}' cannot be exported: its ONNX file would have"
            f" {model.ByteSize() / 2**30:.1f} GiB, and 2 GiB are possible. Use model.pt."
        )
    remove_traces(model)
    return model.SerializeToString(deterministic=True)


def remove_traces(model) -> None:
    """Remove all texts of an onnx.ModelProto that say where it comes from, in place."""
    model.doc_string = ""
    model.producer_name = ""
    model.producer_version = ""
    for graph in (model.graph, *model.functions):
        _clear(graph)
        for node in graph.node:
            _clear(node)
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        _clear(value)
    for tensor in model.graph.initializer:
        _clear(tensor)
    del model.metadata_props[:]


def _clear(part) -> None:
    part.doc_string = ""
    del part.metadata_props[:]


def session(content: bytes, threads: int):
    """Return an onnxruntime session of a file's content on the CPU.

    Its threads do not spin while they wait: other processes and libraries use the same cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_onnx(content: bytes, threads: int):
    """Return a function of an ONNX file: uint8 [N, C, S, S] -> probabilities, float32 [N, K]."""
    own = session(content, threads)

    def run(images: np.ndarray) -> np.ndarray:
        [probabilities] = own.run([OUTPUT], {INPUT: images})
        return probabilities

    return run
