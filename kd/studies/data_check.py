"""A check of a data set for faults, without any run."""

import contextlib
from pathlib import Path

from kd.config.evaluate_settings import Judging, data_settings
from kd.config.layout import folder_of, slug
from kd.config.settings import DATASETS, Data
from kd.data.check.audit import audit
from kd.data.check.audit_text import text, what_is_wrong
from kd.data.dataset import read_index
from kd.data.index import digest
from kd.system.console import log
from kd.system.errors import Problem, counted, printable
from kd.system.files import make_folder, read_json, write_json


def check_data(how: Judging) -> dict:
    """Print the audit of a data set, write it to check-NAME.json and return it.

    Raises Problem (2) if the audit finds a fault, if the data set cannot be read (then the file
    holds the reason), or if none is given.
    """
    if how.dataset is None:
        raise Problem(
            "--check-data needs a data set. Add --dataset"
            f" {'|'.join(DATASETS)} (and --data-dir DIR)."
        )
    data = data_settings(how)
    try:
        result = audit(read_index(data), data)
    except Problem as problem:
        if any(place and Path(place).exists() for place in (data.data_dir, data.table)):
            faults = [f"the data set cannot be read: {printable(problem)}"]
            log(
                f"written: {_write(how, {'name': _name(data), 'problems': faults, 'warnings': []})}"
            )
        raise
    target = _write(how, result)
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


def _name(data: Data) -> str:
    """Return the name that the index of a data set would have."""
    if data.dataset != "folder":
        return data.dataset
    return slug(folder_of(data).resolve().name)


def _write(how: Judging, result: dict) -> Path:
    """Write a result to check-NAME.json and return its path.

    If this file is about another data set of the same name, the name is followed by a hash.
    """
    source = {"dataset": how.dataset}
    for key in ("data_dir", "table"):
        place = getattr(how, key)
        source[key] = place and printable(Path(place).resolve())
    target = make_folder(Path(how.out)) / f"check-{result['name']}.json"
    if target.exists() and _source_of(target) != source:
        target = target.with_stem(f"{target.stem}-{digest(map(str, source.values()))[:8]}")
    content = {"schema_version": 1, "data_dir": how.data_dir, "source": source, **result}
    write_json(target, content)
    return target


def _source_of(file: Path) -> dict | None:
    """Return the data set that a file of an earlier check is about, or None if it is not known."""
    with contextlib.suppress(Problem):
        return read_json(file).get("source")
    return None
