"""Peers of a student, which are trained at once with it, as its report describes them."""

from pathlib import Path

import numpy as np
import torch

from kd import losses, models
from kd.data.index import digest
from kd.reports import metrics
from kd.runs.active import ActiveRun
from kd.teachers import model_file
from kd.teachers.introduction import disagreement

# Why there is no ratio of the gradients of knowledge and labels at the first batch.
NO_RATIO = "the peers learn at the same time, so the ratio at the first batch says little"


def describe_peers(
    runs: list[ActiveRun], place: int, valid: np.ndarray, test: np.ndarray
) -> tuple[dict, np.ndarray]:
    """Return a student's `teacher` entry of the report, and the classes [n] that its peers predict.

    Both are those of the final networks: each peer as its own report and model.pt have it. The
    peers together have the mean of their probabilities, as in training.

    runs         of all students
    place        position of the student in `runs`
    valid, test  logits of all students for the validation and the test split, [S, n, K]
    """
    own, data = runs[place], runs[place].data
    others = [number for number in range(len(runs)) if number != place]
    share = 1 / len(others)
    members = []
    for number, name in zip(others, own.plan.peers):
        predicted = valid[number], test[number]
        members.append({"name": name, "weight": share, **_member(runs[number], *predicted)})
    together = [_together(logits[others], share) for logits in (valid, test)]
    hashes = [member["hash"] for member in members]
    several = len(members) > 1
    entry = {
        "name": own.plan.teacher_name,
        "members": members,
        "hash": digest([*hashes, *[str(share)] * len(others)]) if several else hashes[0],
        "valid_accuracy": metrics.accuracy(together[0], data.valid.labels.numpy()),
        "test_accuracy": metrics.accuracy(together[1], data.test.labels.numpy()),
        "disagreement": disagreement(test[others].argmax(2)) if several else None,
        "gradient_ratio": None,
        "gradient_reason": NO_RATIO,
        "remarks": [],
    }
    return entry, together[1].argmax(1)


def _member(run: ActiveRun, valid: np.ndarray, test: np.ndarray) -> dict:
    """Return what the report says about a peer, without its name and weight."""
    network, data = run.state.network, run.data
    return {
        "architecture": network.architecture,
        "source": str(run.folder.path.relative_to(Path(run.plan.settings.output.out))),
        "hash": model_file.state_hash(run.state.best_weights),
        "split": data.dataset.split_hash,
        "parameters": models.parameters(network.module),
        "valid_accuracy": metrics.accuracy(valid, data.valid.labels.numpy()),
        "test_accuracy": metrics.accuracy(test, data.test.labels.numpy()),
        "differences": [],
    }


def _together(logits: np.ndarray, share: float) -> np.ndarray:
    """Return logits [n, K] of the mean probabilities of several networks, from [M, n, K]."""
    shares = torch.full((len(logits),), share)
    return losses.mixture(torch.from_numpy(logits), shares, 1.0).numpy()
