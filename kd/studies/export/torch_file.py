"""model.pt2: the exported graph as a file of `torch.export`."""

import io

import numpy as np
import torch
from torch.export import ExportedProgram

from kd.studies.export.graph import quiet


def to_pt2(program: ExportedProgram) -> bytes:
    """Return a graph of `graph.exported` as the content of a file for `torch.export.load`."""
    file = io.BytesIO()  # a file's own name would become part of the content
    program.example_inputs = None
    with quiet():
        torch.export.save(program, file)
    return file.getvalue()


def run_pt2(content: bytes):
    """Return a function of a .pt2 file: uint8 [N, C, S, S] -> probabilities, float32 [N, K]."""
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return run
