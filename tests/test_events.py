"""Names that are not UTF-8 in the TensorBoard events of a run."""

import os
from pathlib import Path

from checked_sets import films
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_names_that_are_not_utf_8_do_not_end_a_run(script, tmp_path):
    root = films(tmp_path / os.fsdecode(b"R\xf6ntgen"))
    (root / "a").rename(root / os.fsdecode(b"\xe4"))
    argv = ["--model", "kdtiny", *TINY, "--dataset", "folder", "--data-dir", root, "--epochs", "1", "--site", os.fsdecode(b"K\xf6ln")]
    code, out = script("train_teacher", argv)
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    assert code == 0 and "warning: TensorBoard" not in out and (run / "report.json").exists()
    events = EventAccumulator(str(run)).Reload()
    session = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert rb"R\udcf6ntgen" in session and rb"K\udcf6ln" in session
    code, out = script("train_teacher", [*argv, "--out", os.fsdecode(b"L\xe4ufe")])
    assert code == 0 and "cannot be written (the path is not UTF-8). The run continues without them." in out
