"""A check of a data set for faults, without any run."""

from pathlib import Path

from kd.config.evaluate_settings import Judging, data_settings
from kd.config.settings import DATASETS
from kd.data.check.audit import audit
from kd.data.check.audit_text import text, what_is_wrong
from kd.data.dataset import read_index
from kd.system.console import log
from kd.system.errors import Problem, counted
from kd.system.files import make_folder, write_json


def check_data(how: Judging) -> dict:
    """Print the audit of a data set, write it to check-NAME.json and return it.

    Raises Problem (2) if the audit finds a fault, if the data set cannot be read, or if none is
    given.
    """
    if how.dataset is None:
        raise Problem(
            "--check-data needs a data set. Add --dataset"
            f" {'|'.join(DATASETS)} (and --data-dir DIR)."
        )
    data = data_settings(how)
    result = audit(read_index(data), data)
    target = make_folder(Path(how.out)) / f"check-{result['name']}.json"
    write_json(target, {"schema_version": 1, "data_dir": how.data_dir, **result})
    log(text(result))
    for line in result["warnings"]:
        log(f"warning: {line}")
    for line in result["problems"]:
        log(f"fault: {line}")
    log(f"written: {target}")
    warnings = counted(len(result["warnings"]), "warning", "warnings")
    if result["problems"]:
        wrong = "; ".join(map(what_is_wrong, result["problems"]))
        raise Problem(
            f"Data set '{result['name']}' has faults: {wrong}. Fix them, or keep them in mind."
            f" {target} lists all of them."
        )
    log("no faults found" + (f", {warnings}" if result["warnings"] else ""))
    return result
