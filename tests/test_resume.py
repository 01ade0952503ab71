"""Nothing is lost when runs are killed, stopped, damaged or started twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import DATA, PAIR, ROOT, RUN, TEACHER, TINY, TinyNet, same, weights
from faults import Child
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, TeacherSettings
from kd.reports import report as reports
from kd.runs.folder import RESUME, RunFolder
from kd.system import checkpoint
from kd.system.errors import Problem
from kd.system.locks import exclusive_lock

CHILD = """
import sys
sys.path[:0] = {path!r}
import conftest, torch
torch.set_num_threads(1)
import distill
from kd.system.errors import run_main
sys.exit(run_main(lambda: distill.main({argv!r})))
"""


def run_report(folder):
    """Return a run's report without what depends on the clock or on its folder."""
    report = reports.read(folder)
    del report["clock"], report["settings"]["out"]
    return report


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.case(2, 6)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_if_it_never_was(script, number):
    # --weights is handled like pretrained weights: after a resume the student is not built from them again.
    torch.save(TinyNet(num_classes=7).state_dict(), "start.pt")
    argv = [*PAIR, "--mode", "normal", "--epochs", "6", "--batch-size", "4", "--save-every-minutes", "0", "--weights", "start.pt"]
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(path=[str(ROOT), str(ROOT / "tests")], argv=argv)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (RUN / "resume.previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(child.pid, number)
    stderr = child.communicate(timeout=60)[1].decode()
    assert child.returncode == (-9 if number == signal.SIGKILL else 143) and not (RUN / "report.json").exists()
    if number == signal.SIGTERM:
        assert "Run the same command again" in stderr and "Traceback" not in stderr

    code, out = script("distill", argv)
    assert code == 0 and "continuing from step" in out and not list(RUN.glob("resume*"))
    script("distill", [*argv, "--out", "whole"])
    whole = "whole" / RUN.relative_to("runs")
    assert run_report(RUN) == run_report(whole) and equal(weights(RUN), weights(whole))
    points = {}
    for folder in (RUN, whole):
        events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
        points[folder] = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
                          if not tag.startswith("clock/")}
    assert points[RUN] == points[whole]


@pytest.mark.case(6)
def test_a_signal_while_the_teacher_is_trained_ends_the_student_too(script, monkeypatch):
    asked = []

    def stop(row):
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("kd.runs.tensorboard.Events.epoch", lambda self, row: stop(row))
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    assert code == 143 and "The state was saved in 'runs/synthetic-patient-32/teacher/kdwide/seed0'" in out
    assert (TEACHER / "resume.pt").exists() and not (RUN / "report.json").exists()
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    assert code == 0 and "continuing from step" in out


@pytest.mark.case(6)
def test_a_signal_in_the_last_validation_is_not_forgotten(script, monkeypatch):
    command = ["train_teacher", ["--model", "kdtiny", *TINY]]
    with monkeypatch.context() as patch:
        patch.setattr("kd.runs.tensorboard.Events.epoch",
                      lambda self, row: row["epoch"] == 2 and os.kill(os.getpid(), signal.SIGTERM))
        assert script(*command)[0] == 143
    code, out = script(*command)
    assert code == 0 and "continuing from step" in out and (DATA / "teacher/kdtiny/seed0/report.json").exists()


@pytest.mark.case(23)
def test_two_processes_never_share_a_run_folder(script):
    with exclusive_lock(DATA / "teacher/kdtiny/seed0"):
        code, out = script("train_teacher", ["--model", "kdtiny", *TINY])
    assert code == 75 and f"process {os.getpid()}" in out


@pytest.mark.case(23)
def test_the_lock_goes_with_a_killed_process(script):
    def hold():
        with exclusive_lock(DATA / "teacher/kdtiny/seed0"):
            Path("held").touch()
            time.sleep(60)

    child = Child(hold)
    deadline = time.monotonic() + 30
    while not Path("held").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert script("train_teacher", ["--model", "kdtiny", *TINY])[0] == 75
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert script("train_teacher", ["--model", "kdtiny", *TINY])[0] == 0


@pytest.mark.case(3)
def test_what_a_killed_save_left_is_cleared_away(script):
    folder = DATA / "teacher/kdtiny/seed0"
    folder.mkdir(parents=True)
    (folder / ".resume.pt.abc.tmp").write_bytes(b"half")
    assert script("train_teacher", ["--model", "kdtiny", *TINY])[0] == 0
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def begun(prepared):
    """Return a distillation after its second step, saved twice: (its command, newest resume file, the previous one)."""
    command = ["distill", [*PAIR, "--mode", "normal", "--save-every-minutes", "0"]]
    stopped = ("distill", [*command[1], "--max-minutes", "0"])
    prepared([("train_teacher", ["--model", "kdwide", *TINY]), stopped, stopped])
    return command, RUN / "resume.pt", RUN / "resume.previous.pt"


DAMAGES = {"0 %": lambda content: b"", **{f"{share} %": lambda content, s=share: content[:len(content) * s // 100]
                                          for share in (1, 25, 50, 75, 99)},
           "text": lambda content: b"not a checkpoint", "garbage": lambda content: bytes(range(256)) * 99}


@pytest.mark.case(9)
def test_every_damage_of_the_resume_file_falls_back_to_the_one_before(begun, injected):
    """Read the file as a resuming run does. The next test resumes a complete run."""
    _, newest, previous = begun
    whole, older = newest.read_bytes(), checkpoint.load(previous)
    damages = [damage(whole) for damage in DAMAGES.values()]
    for place in random.Random(0).sample(range(len(whole)), 20):
        damages.append(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1:])
    fallen = 0
    for content in damages:
        newest.write_bytes(content)
        found = RunFolder(RUN).load()["state"]
        now = same(found, older["state"])
        assert now != newest.exists()  # a damaged file must not replace the good one at the next save
        newest.write_bytes(whole)
        assert now or same(found, checkpoint.load(newest)["state"])
        fallen += now
    assert fallen >= len(DAMAGES)
    injected(len(damages))


@pytest.mark.case(9)
def test_a_damaged_resume_file_costs_only_the_steps_since_the_one_before(begun, script):
    command, newest, previous = begun
    newest.write_bytes(newest.read_bytes()[:-50])
    code, out = script(*command)
    assert code == 0 and "warning: Resume file" in out and "continuing from step 1 " in out


@pytest.mark.case(9)
def test_two_damaged_resume_files_are_refused(begun, script):
    command, newest, previous = begun
    for file in (newest, previous):
        file.write_bytes(b"")
    code, out = script(*command)
    assert code == 4 and "resume" in out.splitlines()[-1]


@pytest.mark.case(1)
@pytest.mark.parametrize("key", sorted(RESUME))
def test_a_resume_file_that_lacks_anything_is_refused(begun, script, key):
    command, newest, _ = begun
    content = checkpoint.load(newest)
    del content[key]
    checkpoint.save(newest, content)
    code, out = script(*command)
    assert code == 4 and f"missing: ['{key}']" in out.splitlines()[-1]


@pytest.mark.case(1)
@pytest.mark.parametrize("change", [
    lambda content: content.update(clock={}), lambda content: content["state"]["progress"].update(step="x"),
    lambda content: content["state"]["progress"].update(history=None), lambda content: content["state"].pop("optimizer"),
    lambda content: content["state"]["progress"].update(best={"valid_accuracy": 1.0}),
    lambda content: content["state"]["weights"].update({"fc.bias": torch.zeros(7).to_sparse()})])
def test_a_resume_file_that_holds_other_things_is_refused(begun, script, change):
    command, newest, _ = begun
    content = checkpoint.load(newest)
    change(content)
    torch.save(content, newest)
    RUN.joinpath("resume.previous.pt").unlink()
    code, out = script(*command)
    assert code == 4 and out.splitlines()[-1].startswith("error: ")


def test_the_space_that_resume_files_take_already_is_not_asked_for_twice(begun, monkeypatch):
    folder = RunFolder(RUN)
    there = sum(file.stat().st_size for file in begun[1:])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 100_000})())
    folder.check_space((there + 100_000) // 48)
    with pytest.raises(Problem, match="are free"):
        folder.check_space((there + 100_100) // 48 + 1)

@pytest.mark.case(11)
def test_a_resume_file_of_another_network_is_refused(begun, script):
    command, newest, _ = begun
    content = checkpoint.load(newest)
    content["state"]["weights"]["fc.weight"] = torch.zeros(2, 2)
    checkpoint.save(newest, content)
    code, out = script(*command)
    assert code == 4 and "Saved state of kdtiny" in out.splitlines()[-1] and "fc.weight" in out.splitlines()[-1]


@pytest.mark.case(12)
def test_a_teacher_that_was_replaced_under_a_run_is_refused(begun, script):
    command, _, _ = begun
    content = checkpoint.load(TEACHER / "model.pt")
    content["state_dict"]["fc.bias"] += 1
    checkpoint.save(TEACHER / "model.pt", content)
    code, out = script(*command)
    assert code == 4 and "Restore that teacher" in out.splitlines()[-1]


@pytest.mark.case(12)
@pytest.mark.parametrize("kind", [TeacherSettings, DistillSettings])
def test_every_setting_that_changes_results_is_compared_at_resume(tmp_path, injected, kind):
    settings = kind()
    folder = RunFolder(tmp_path)
    folder.claim(resolve(settings))
    folder.resume.touch()
    folder.claim(resolve(settings))
    keys = parsing.flat(settings, identity_only=True).keys() - {"data_dir", "errata", "table", "unlabeled_dir"}  # stored as absolute paths
    for key in keys & resolve(settings).unused:
        folder.claim(resolve(parsing.replace(settings, **{key: None})))  # a setting that is not used does not make another run
    folder.claim(resolve(settings))
    keys -= resolve(settings).unused
    for key in keys:
        old = parsing.flat(settings)[key]
        new = {bool: lambda: not old, int: lambda: old + 1, float: lambda: old + 0.25, str: lambda: "other",
               list: lambda: [*old, 9.0], type(None): lambda: 3}[type(old)]()
        new = {"mode": "reverse", "knowledge": "dkd", "augment": "strong", "augment_without": ["mirror"]}.get(key, new)
        with pytest.raises(Problem) as caught:
            folder.claim(resolve(parsing.replace(settings, **{key: new})))
        assert caught.value.code == 2 and f"{key}: {json.dumps(old)} -> {json.dumps(new)}" in str(caught.value)
    assert len(keys) > 25
    injected(len(keys))
