"""Evaluation of a run's teachers before its training begins, for the console and the report."""

from collections.abc import Callable

import numpy as np

from kd import models
from kd.data.dataset import Dataset
from kd.data.views import Views
from kd.reports import metrics
from kd.system.console import log
from kd.system.errors import DIVERGED, Problem
from kd.teachers import chance
from kd.teachers.ensemble import Ensemble, Teacher


def introduce(
    ensemble: Ensemble,
    dataset: Dataset,
    valid: Views,
    test: Views,
    ratio: tuple[float | None, str | None],
    remarks: list[str],
    check_stop: Callable[[], None],
) -> dict:
    """Evaluate the teachers, print the results, and return the report's `teacher` entry.

    ratio    (gradient of the knowledge term relative to that of the label term on the first batch,
             the reason if it is undefined)
    remarks  notes for the user, which are printed and reported, as are warnings about teachers that
             are not better than chance

    Raises Problem (3) for a teacher whose logits are not finite.
    """
    entry = {
        "name": ensemble.plan.teacher_name,
        "members": [],
        "hash": ensemble.hash,
        "valid_accuracy": None,
        "test_accuracy": None,
        "disagreement": None,
        "gradient_ratio": ratio[0],
        "gradient_reason": ratio[1],
        "remarks": remarks,
    }
    warnings = []
    if ensemble.members:
        valid_logits = ensemble.answers(valid, check_stop)
        entry |= _judged(ensemble, valid_logits, valid, test, check_stop)
        warnings = _warnings(ensemble, valid_logits, dataset)
    if ratio[0] is not None:
        log(
            "gradient of the knowledge term relative to that of the label term on the first batch:"
            f" {ratio[0]:.3g} (alpha {ensemble.plan.alpha:g}; 1 means that both are equally large)"
        )
    for member in ensemble.members:
        for text in member.differences:
            log(f"note: Teacher {member.name}: {text}.")
    for remark in remarks:
        log(f"note: {remark}")
    for text in warnings:
        log(f"warning: {text}")
    return entry | {"remarks": [*remarks, *warnings]}


def _warnings(ensemble: Ensemble, valid_logits: np.ndarray, dataset: Dataset) -> list[str]:
    """Return warnings about teachers that know no more than chance, or another order of classes.

    A teacher that was never trained, or whose training was stopped early, is meant to be poor.
    """
    found = []
    for member, wanted, logits in zip(ensemble.members, ensemble.plan.teachers, valid_logits):
        defective = wanted.plan is not None and wanted.plan.stop_at is not None
        if wanted.seed is None and not defective:
            found.append(chance.warning(member, logits, dataset))
    return [text for text in found if text]


def disagreement(predicted: np.ndarray) -> float:
    """Return the share of images on which two teachers disagree: the mean over all pairs.

    Two teachers disagree on an image if they predict different classes.

    predicted: int [M, n] with M > 1.
    """
    shares = []
    for first in range(len(predicted)):
        for second in range(first):
            shares.append((predicted[first] != predicted[second]).mean())
    return float(np.mean(shares))


def _judged(
    ensemble: Ensemble,
    valid_logits: np.ndarray,
    valid: Views,
    test: Views,
    check_stop: Callable[[], None],
) -> dict:
    """Return the entries of the report on the accuracy of each member and of all together."""
    test_logits = ensemble.answers(test, check_stop)
    valid_labels, test_labels = valid.labels.numpy(), test.labels.numpy()
    members = []
    for member, share, of_valid, of_test in zip(
        ensemble.members, ensemble.weights, valid_logits, test_logits
    ):
        valid_accuracy = _accuracy(ensemble, member, of_valid, valid_labels)
        test_accuracy = _accuracy(ensemble, member, of_test, test_labels)
        members.append(_member_entry(member, share, valid_accuracy, test_accuracy))
        log(f"teacher {member.name} ({member.source}): validation accuracy {valid_accuracy:.4f}")
    entry = {
        "members": members,
        "valid_accuracy": metrics.accuracy(ensemble.together(valid_logits), valid_labels),
        "test_accuracy": metrics.accuracy(ensemble.together(test_logits), test_labels),
    }
    if len(members) > 1:
        entry["disagreement"] = disagreement(test_logits.argmax(2))
        log(
            f"teachers together: validation accuracy {entry['valid_accuracy']:.4f}; two"
            f" teachers disagree on {100 * entry['disagreement']:.1f} % of the test images"
        )
    return entry


def _accuracy(ensemble: Ensemble, member: Teacher, logits: np.ndarray, labels: np.ndarray) -> float:
    bad = int((~np.isfinite(logits)).any(1).sum())
    if bad:
        lr = ensemble.plan.settings.training.lr
        raise Problem(
            f"Teacher {member.name} ({member.source}): its logits are not finite for {bad} of"
            f" {len(logits)} images. Stopped before step 0 (learning rate {lr:g}). Use a teacher"
            " whose weights are finite.",
            DIVERGED,
        )
    return metrics.accuracy(logits, labels)


def _member_entry(member: Teacher, weight: float, valid: float, test: float) -> dict:
    """Return the report's entry for one teacher."""
    found = member.trained
    return {
        "name": member.name,
        "architecture": found.network.architecture,
        "source": member.source,
        "hash": found.hash,
        "split": found.about and found.about["data"]["split_hash"],
        "weight": weight,
        "parameters": models.parameters(found.network.module),
        "valid_accuracy": valid,
        "test_accuracy": test,
        "differences": member.differences,
    }
