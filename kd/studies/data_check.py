"""A data set checked for faults, without any run."""

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
    """Print what is wrong with a data set and write it to check-NAME.json; returns it.

    Raises Problem (2) if anything is.
    """
    if how.dataset is None:
        raise Problem(
            f"dataset in --dataset: not given; --check-data needs --dataset {'|'.join(DATASETS)}"
            " (and --data-dir DIR)"
        )
    data = Data(dataset=how.dataset, data_dir=how.data_dir, label=how.label, errata=how.errata)
    result = audit(read_index(data))
    target = make_folder(Path(how.out)) / f"check-{result['name']}.json"
    write_json(target, {"schema_version": 1, "data_dir": how.data_dir, **result})
    log(audit_text(result))
    log(f"written: {target}")
    if result["problems"]:
        raise Problem(
            f"data set '{result['name']}': {'; '.join(result['problems'])}; mend it, or know it"
            f" (all in {target})"
        )
    log("nothing wrong was found")
    return result
