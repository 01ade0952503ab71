"""A check of a data set for faults, without any run."""

from pathlib import Path

from kd.config.evaluate_settings import Judging
from kd.config.settings import DATASETS, Data
from kd.data.audit import audit
from kd.data.audit import text as audit_text
from kd.data.dataset import read_index
from kd.system.console import log
from kd.system.errors import Problem
from kd.system.files import make_folder, write_json


def check_data(how: Judging) -> dict:
    """Print the audit of a data set, write it to check-NAME.json and return it.

    Raises Problem (2) if the audit finds a fault or no data set is given.
    """
    if how.dataset is None:
        raise Problem(
            "--check-data needs a data set. Add --dataset"
            f" {'|'.join(DATASETS)} (and --data-dir DIR)."
        )
    data = Data(dataset=how.dataset, data_dir=how.data_dir, label=how.label, errata=how.errata)
    result = audit(read_index(data))
    target = make_folder(Path(how.out)) / f"check-{result['name']}.json"
    write_json(target, {"schema_version": 1, "data_dir": how.data_dir, **result})
    log(audit_text(result))
    log(f"written: {target}")
    if result["problems"]:
        raise Problem(
            f"Data set '{result['name']}' has faults: {'; '.join(result['problems'])}. Fix them or"
            f" keep them in mind. {target} lists all of them."
        )
    log("no faults found")
    return result
