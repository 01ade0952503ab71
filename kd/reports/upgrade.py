"""Reports of earlier versions, brought to the present schema."""

import contextlib
import re

import numpy as np

from kd.reports.calibration import NO_TEMPERATURE, is_fitted

OLD_VERSIONS = (4, 5)  # of the schema, the only earlier ones that can be read
_WITHOUT_PATIENTS = ("aptos", "messidor", "messidor2")
_WITH_STUDIES = ("mura", "synthetic")
_PATIENT_AS_STUDY = (
    "an earlier version wrote this report, which took patients for studies where no study was known"
)


def upgraded(report: dict, version: int) -> dict:
    """Return a report of OLD_VERSIONS as one of `version`, and any other report unchanged.

    What the old report does not contain is None. A damaged report stays damaged, for
    `kd.reports.report.check` to name the fault.
    """
    if report.get("schema_version") not in OLD_VERSIONS:
        return report
    upgrades = [_without_metrics]
    if report["schema_version"] == 4:
        upgrades += [_uncounted, _temperature, _study, _macro_average, _patients, _ranks]
    for upgrade in upgrades:
        with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
            upgrade(report)
    return report | {"schema_version": version}


def _uncounted(report: dict) -> None:
    """Add what the first reports of the old version did not count."""
    data = report["data"]
    data.setdefault("other_files", {})
    data.setdefault("ranges", {})
    if data["pool"] is not None:
        data["pool"] = {"ranges": {}, "notes": []} | data["pool"]


def _temperature(report: dict) -> None:
    """Remove a temperature at a bound of its range, which is not fitted."""
    calibration = report["evidence"]["calibration"]
    calibration["reason"] = None
    if not is_fitted(calibration["temperature"]):
        calibration |= {"temperature": None, "after": None, "reason": NO_TEMPERATURE}


def _study(report: dict) -> None:
    """Remove an accuracy over studies that may have been one over patients."""
    study = report["evidence"]["study"]
    data = report["data"]
    counts = {"several_labels": 0, "unknown": 0, "reason": None}
    if data["reader"] not in _WITH_STUDIES or report["settings"].get("errata") is not None:
        counts = {key: None for key in ("studies", "accuracy", "several_labels", "unknown")}
        counts["reason"] = _PATIENT_AS_STUDY
    study |= counts


def _macro_average(report: dict) -> None:
    """Average over the classes that are present; the old average was over all classes."""
    table = report["classification_report"]
    rows = [table[name] for name in report["data"]["classes"]]
    present = [row for row in rows if row["support"] > 0]
    if len(present) < len(rows):
        for key in ("precision", "recall", "f1-score"):
            table["macro avg"][key] = float(np.mean([row[key] or 0.0 for row in present]))


def _patients(report: dict) -> None:
    """Count the images without a patient, each of which the old version counted as a patient."""
    data = report["data"]
    data["without_patient"] = {}
    data["without_patient"] = {name: 0 for name in data["parts"]}
    unknown = 0
    for note in data["notes"]:
        found = re.match("([0-9]+) of ([0-9]+) images have no patient", note)
        if found:
            unknown = int(found[1]) / int(found[2])
    if data["reader"] in _WITHOUT_PATIENTS or unknown == 1:
        data["without_patient"] = dict(data["distinct_images"])
        data["patients"] = {name: 0 for name in data["parts"]}
    elif unknown:
        for key in ("patients", "without_patient"):
            data[key] = {name: None for name in data["parts"]}


def _ranks(report: dict) -> None:
    report["clock"].setdefault("ranks", None)


def _without_metrics(report: dict) -> None:
    """Add the metrics with intervals, subgroups and the flow of images, which are not known."""
    report["evidence"] |= {
        "positive": None,
        "operating_point": None,
        "prevalence": None,
        "metrics": {},
        "subgroups": {},
    }
    report["data"]["flow"] = []
    own = report["evidence"]["calibration"]
    own["ece_if_calibrated"] = None
    for scores in (own["before"], own["after"]):
        if scores is not None:
            scores |= {"classwise_ece": None, "adaptive_ece": None}
