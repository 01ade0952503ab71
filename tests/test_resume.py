"""Nothing is lost: runs that are killed, stopped, damaged or started twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import DATA, PAIR, ROOT, RUN, TEACHER, TINY, TinyNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd.results import report as reports

CHILD = """
import sys
sys.path[:0] = {path!r}
import conftest, torch
torch.set_num_threads(1)
import distill
from kd.errors import run_main
sys.exit(run_main(lambda: distill.main({argv!r})))
"""


def run_report(folder):
    """A run's report without what depends on the clock or on where it lies."""
    report = reports.read(folder)
    del report["clock"], report["settings"]["out"]
    return report


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)["state_dict"]


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_as_if_it_never_was(script, number):
    # Given weights take the road of pretrained ones: after a resume the student is not built from them again.
    torch.save(TinyNet(num_classes=7).state_dict(), "start.pt")
    argv = [*PAIR, "--mode", "normal", "--epochs", "6", "--batch-size", "4", "--save-every-minutes", "0", "--weights", "start.pt"]
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(path=[str(ROOT), str(ROOT / "tests")], argv=argv)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (RUN / "resume.previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    child.send_signal(number)
    stderr = child.communicate(timeout=60)[1].decode()
    assert child.returncode == (-9 if number == signal.SIGKILL else 143) and not (RUN / "report.json").exists()
    if number == signal.SIGTERM:
        assert "run the same command again" in stderr and "Traceback" not in stderr

    code, out = script("distill", argv)
    assert code == 0 and "going on from step" in out and not list(RUN.glob("resume*"))
    script("distill", [*argv, "--out", "whole"])
    whole = "whole" / RUN.relative_to("runs")
    assert run_report(RUN) == run_report(whole) and equal(weights(RUN), weights(whole))
    points = {}
    for folder in (RUN, whole):
        events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
        points[folder] = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
                          if not tag.startswith("clock/")}
    assert points[RUN] == points[whole]


def test_a_signal_while_the_teacher_is_trained_ends_the_student_too(script, monkeypatch):
    asked = []

    def stop(row):
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("kd.results.events.Events.epoch", lambda self, row: stop(row))
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    assert code == 143 and "saved in 'runs/synthetic-patient-32/teacher/kdwide/seed0'" in out
    assert (TEACHER / "resume.pt").exists() and not (RUN / "report.json").exists()
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    assert code == 0 and "going on from step" in out


def test_a_signal_in_the_last_validation_is_not_forgotten(script, monkeypatch):
    command = ["train_teacher", ["--model", "kdtiny", *TINY]]
    with monkeypatch.context() as patch:
        patch.setattr("kd.results.events.Events.epoch",
                      lambda self, row: row["epoch"] == 2 and os.kill(os.getpid(), signal.SIGTERM))
        assert script(*command)[0] == 143
    code, out = script(*command)
    assert code == 0 and "going on from step" in out and (DATA / "teacher/kdtiny/seed0/report.json").exists()


def test_two_processes_never_share_a_run_folder(script):
    from kd.runtime import lock
    with lock(DATA / "teacher/kdtiny/seed0"):
        code, out = script("train_teacher", ["--model", "kdtiny", *TINY])
    assert code == 75 and f"process {os.getpid()}" in out


def test_what_a_killed_save_left_is_cleared_away(script):
    folder = DATA / "teacher/kdtiny/seed0"
    folder.mkdir(parents=True)
    (folder / ".resume.pt.abc.tmp").write_bytes(b"half")
    assert script("train_teacher", ["--model", "kdtiny", *TINY])[0] == 0
    assert not list(folder.glob(".*.tmp"))


def test_a_damaged_resume_file_falls_back_to_the_one_before(script, monkeypatch):
    command = ["train_teacher", ["--model", "kdtiny", *TINY, "--save-every-minutes", "0"]]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("kd.results.outcome.conclude", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        script(*command)
    newest = next(Path("runs").rglob("resume.pt"))
    newest.write_bytes(newest.read_bytes()[:-50])
    code, out = script(*command)
    assert code == 0 and "warning: resume file" in out and "going on from step" in out
