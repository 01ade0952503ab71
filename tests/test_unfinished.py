"""Runs that end without a report leave a record of how they ended, and the tables list them."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY
from faults import Child, in_child

from kd import loop
from kd.reports import figures
from kd.reports import report as reports
from kd.runs import finish, folder, run
from kd.runs.ending import Ending
from kd.runs.folder import RunFolder
from kd.studies import few_labels, tables
from kd.studies.unfinished import n_text, read_unfinished
from kd.system import ranks
from kd.system.errors import CANNOT_WRITE, DIVERGED, Problem, Stopped
from kd.system.files import read_json
from kd.system.locks import exclusive_lock, owner_of_lock

ALONE = ["--model", "kdtiny", *TINY, "--save-every-minutes", "0"]
PLACE = DATA / "teacher/kdtiny/seed0"
HUGE = ["--lr", "1e30"]  # diverges within a few steps


def record(where=PLACE):
    return read_json(where / "ended.json")


# The record ---------------------------------------------------------------------------------------


@pytest.mark.case(19)
def test_a_run_that_diverges_leaves_its_reason_and_a_finished_run_does_not(script):
    code, out = script("train_teacher", [*ALONE, *HUGE])
    found = record()
    assert code == 3 and (found["ended"], found["code"]) == ("diverged", 3) and found["step"] > 0 and found["time"]
    assert out.splitlines()[-1] == f"error: {found['message']}" and "Lower --lr" in found["message"]
    shutil.rmtree(PLACE)
    assert script("train_teacher", [*ALONE, "--max-steps", "1"])[0] == 0
    assert (PLACE / "report.json").is_file() and not (PLACE / "ended.json").exists()


@pytest.mark.case(6)
def test_the_record_of_a_stop_is_replaced_by_the_next_and_removed_at_the_end(script):
    for step in (1, 2):
        assert script("train_teacher", [*ALONE, "--max-minutes", "0"])[0] == 143
        found = record()
        assert (found["ended"], found["code"], found["step"]) == ("stopped", 143, step)
        assert f"at step {step}. The state was saved" in found["message"]
    assert script("train_teacher", ALONE)[0] == 0
    assert not (PLACE / "ended.json").exists()


@pytest.mark.case(2)
def test_a_run_that_is_killed_after_it_continued_has_no_record_of_its_last_end(script, monkeypatch):
    assert script("train_teacher", [*ALONE, "--max-minutes", "0"])[0] == 143 and (PLACE / "ended.json").exists()
    monkeypatch.setattr(loop, "_row", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert in_child(lambda: __import__("train_teacher").main(ALONE)).code == -signal.SIGKILL
    [found], left_out = read_unfinished(Path("runs"))
    assert (found.folder, found.state, left_out) == (PLACE, "interrupted", []) and not (PLACE / "ended.json").exists()
    assert "Run the same command again to continue." in found.describe()


@pytest.mark.case(7)
def test_two_ctrl_c_from_python_are_a_stop(script, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(loop, "_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        script("train_teacher", ALONE)
    assert record()["ended"] == "stopped" and record()["code"] == 130


@pytest.mark.case(4)
@pytest.mark.parametrize("error", [Problem("'ended.json' cannot be written (disk full).", CANNOT_WRITE), OSError(28, "full"),
                                   MemoryError()])
def test_the_error_of_the_run_is_reported_even_if_its_record_cannot_be_written(script, monkeypatch, error):
    real = folder.write_json

    def write(path, value):
        if path.name == "ended.json":
            raise error
        real(path, value)
    monkeypatch.setattr(folder, "write_json", write)
    code, out = script("train_teacher", [*ALONE, *HUGE])
    assert code == 3 and out.splitlines()[-1].startswith("error: Training of kdtiny diverged") and not (PLACE / "ended.json").exists()


@pytest.mark.case(5)
def test_a_full_disk_under_the_report_is_recorded(script, monkeypatch):
    def full(*_):
        raise Problem("'predictions.csv' cannot be written (disk full).", CANNOT_WRITE)
    monkeypatch.setattr(finish, "write_text", full)
    assert script("train_teacher", [*ALONE, "--max-steps", "3"])[0] == 74
    found = record()
    assert (found["ended"], found["code"], found["step"]) == ("failed", 74, 3) and "disk full" in found["message"]


def test_a_run_of_a_list_keeps_its_record(script, monkeypatch):
    real = run.train

    def train(plans, *others):
        if plans[0].student == "kdtiny":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(plans, *others)
    monkeypatch.setattr(run, "train", train)
    assert script("train_teacher", ["--model", "kdtiny", "kdwide", *TINY, "--max-steps", "1"])[0] == 2
    assert record()["ended"] == "failed" and "ran out of memory" in record()["message"] and record()["step"] is None
    assert (TEACHER / "report.json").is_file() and not (TEACHER / "ended.json").exists()


def test_a_student_whose_teacher_diverged_did_not_diverge_itself(script):
    assert script("distill", [*PAIR, "--mode", "normal", *HUGE])[0] == 3
    assert record(TEACHER)["ended"] == "diverged" and record(TEACHER)["step"] > 0
    found = record(RUN)
    assert (found["ended"], found["code"], found["step"]) == ("teacher diverged", 3, None)
    assert found["message"].startswith(f"Its teacher in '{TEACHER}' did not finish: Training of kdwide diverged")


def test_a_student_that_fails_after_its_teacher_was_trained_blames_itself(script, monkeypatch):
    def broken(members, plan, *_):
        if plan.distils:
            raise ValueError("broken\nin two lines")
    monkeypatch.setattr(run, "join", broken)
    with pytest.raises(ValueError):
        script("distill", [*PAIR, "--mode", "normal"])
    found = record(RUN)
    assert (TEACHER / "report.json").is_file() and not (TEACHER / "ended.json").exists()
    assert (found["ended"], found["code"]) == ("failed", 1) and "(ValueError: broken in two lines)" in found["message"]
    assert "teacher" not in found["message"]


def test_a_run_that_is_refused_after_its_folder_was_claimed_has_a_record(script):
    assert script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", "nowhere"])[0] == 2
    [place] = Path("runs").rglob("ended.json")
    found = record(place.parent)
    assert (found["ended"], found["code"]) == ("failed", 2) and "nowhere" in found["message"]


@pytest.mark.parametrize("words, said", [
    (["--dataset", "folder"], "--data-dir is not set"), (["--dataset", "mura"], "--data-dir is not set"),
    (["--dataset", "eyepacs"], "--data-dir is not set"), (["--dataset", "mura", "--data-dir", ".", "--columns", "label=x"], "--columns is not valid"),
    (["--positive", "nobody"], "--positive 'nobody' is not valid"), (["--subgroups", "age"], "--subgroups")])
def test_settings_that_can_never_be_valid_leave_no_folder(script, words, said):
    for name, own in (("train_teacher", ["--model", "kdtiny"]), ("distill", ["--teacher", "kdwide", "--student", "kdtiny"])):
        code, out = script(name, [*own, *TINY, *words])
        assert code == 2 and said in out.splitlines()[-1] and not list(Path("runs").rglob("*.json")), out


def test_settings_that_become_invalid_are_recorded_where_the_run_has_a_folder(script):
    assert script("train_teacher", [*ALONE, "--max-minutes", "0"])[0] == 143 and record()["ended"] == "stopped"
    assert script("train_teacher", [*ALONE, "--positive", "nobody"])[0] == 2
    assert record()["ended"] == "failed" and "--positive" in record()["message"] and (PLACE / "resume.pt").is_file()


@pytest.mark.case(12, 23)
def test_a_run_that_does_not_get_its_folder_leaves_the_record_as_it_was(script):
    assert script("train_teacher", [*ALONE, "--max-minutes", "0"])[0] == 143
    before = (PLACE / "ended.json").read_bytes()
    assert script("train_teacher", [*ALONE, "--lr", "0.5"])[0] == 2
    with exclusive_lock(PLACE):
        assert script("train_teacher", ALONE)[0] == 75
    assert (PLACE / "ended.json").read_bytes() == before
    with exclusive_lock(TEACHER):
        assert script("train_teacher", ["--model", "kdwide", *TINY])[0] == 75
    assert not (TEACHER / "ended.json").exists()


def end(where, error):
    with pytest.raises(type(error)), RunFolder(where).recording_end():
        raise error


def test_only_the_main_rank_writes_and_only_without_a_report(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "rank", lambda: 1)
        end(tmp_path, Problem("x."))
    assert not list(tmp_path.iterdir())
    (tmp_path / "report.json").touch()
    end(tmp_path, Problem("x."))
    assert not (tmp_path / "ended.json").exists()
    (tmp_path / "report.json").unlink()
    end(tmp_path, RuntimeError("[gloo/transport] Connection closed by peer"))
    assert "lost the connection to the other ranks" in record(tmp_path)["message"] and record(tmp_path)["code"] == 1


@pytest.mark.parametrize("error, step, teacher, word", [
    (Problem("x.", DIVERGED), 3, None, "diverged"), (Problem("x.", DIVERGED), None, None, "failed"),
    (Problem("x.", DIVERGED), None, Path("t"), "teacher diverged"), (Stopped("x.", 143), None, Path("t"), "stopped"),
    (Problem("x.", 74), 5, None, "failed"), (MemoryError(), 5, None, "failed"), (KeyboardInterrupt(), 5, None, "stopped")])
def test_the_word_for_an_end(error, step, teacher, word):
    assert Ending(step, teacher).entry(error)["ended"] == word


# Locks --------------------------------------------------------------------------------------------


@pytest.mark.case(23)
def test_the_owner_of_a_lock_is_known_and_keeps_it(tmp_path):
    assert owner_of_lock(tmp_path) is None and not list(tmp_path.iterdir())

    def hold():
        with exclusive_lock(tmp_path):
            Path("held").touch()
            time.sleep(60)
    child = Child(hold)
    while not Path("held").exists():
        time.sleep(0.01)
    assert f"process {child.pid} on " in owner_of_lock(tmp_path)
    with pytest.raises(Problem, match=f"process {child.pid} on "), exclusive_lock(tmp_path):
        pass
    child.kill(signal.SIGKILL)
    child.wait()
    assert owner_of_lock(tmp_path) is None
    with exclusive_lock(tmp_path):
        pass


@pytest.mark.case(23)
def test_a_look_at_the_lock_does_not_refuse_a_run_that_starts(tmp_path):
    with exclusive_lock(tmp_path):
        pass
    look = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.01, os.close, [look]).start()
    with exclusive_lock(tmp_path):
        pass


# The tables ---------------------------------------------------------------------------------------


def unfinish(where, **ended):
    """Turn a run of `make` into one that ended without a report, with a record if there are values."""
    (where / "report.json").unlink()
    if ended:
        values = {"schema_version": 1, "ended": "diverged", "code": 3, "step": 8, "message": "It went wrong. Lower --lr.",
                  "time": "2025-01-01T00:00:00+00:00"}
        (where / "ended.json").write_text(json.dumps(values | ended))
    return where


def test_every_unfinished_run_is_in_its_cell_in_the_list_and_in_the_commands(make, script):
    for name in ("resnet18", "resnet34"):
        make("alone", "", name, 0)
    for seed in (0, 1):
        make("normal", "resnet50", "resnet18", seed)
    bad = unfinish(make("normal", "resnet50", "resnet18", 2), ended="diverged")
    also = unfinish(make("normal", "resnet50", "resnet34", 0), ended="teacher diverged", step=None)
    stopped = unfinish(make("normal", "resnet50", "resnet34", 1, lambda report: report["settings"].update(max_minutes=5.0)),
                       ended="stopped", code=143, message="Stopped at step 8. Run the same command again.")
    failed = unfinish(make("alone", "", "resnet50", 0), ended="failed", code=2, message="Out of memory.\nrm -r x")
    killed = unfinish(make("alone", "", "resnet18", 1))
    running = unfinish(make("alone", "", "resnet34", 1))
    with exclusive_lock(running):
        code, out = script("evaluate", ["--tables", "runs"])
    result = json.loads(Path("runs/tables.json").read_text())
    assert code == 0 and {one["folder"]: one["state"] for one in result["unfinished"]} == {
        str(bad): "diverged", str(also): "teacher diverged", str(stopped): "stopped", str(failed): "failed",
        str(killed): "interrupted", str(running): "running"}
    [first] = [one for one in result["unfinished"] if one["folder"] == str(bad)]
    assert (first["role"], first["teacher"], first["student"], first["seed"], first["step"], first["code"]) == (
        "normal", "resnet50", "resnet18", 2, 8, 3)
    listed = out[out.index("# Unfinished runs"):]
    assert listed.count("\n- Run '") == 6 and f"'{bad}' (diverged): It went wrong. Lower --lr." in listed
    [table] = result["protocols"][0]["tables"]
    cells = {cell["student"]: cell for cell in table["cells"]}
    assert cells["resnet18"]["unfinished"] == {"diverged": 1} and " (n = 2; 1 diverged) |" in out
    assert cells["resnet34"]["unfinished"] == {"teacher diverged": 1, "stopped": 1} and cells["resnet34"]["n"] == 0
    assert "| teacher diverged (1), stopped (1) |" in out
    assert table["teachers"][0]["unfinished"] == {"failed": 1} and " (n = 2; 1 failed" in out  # two networks taught
    missing = table["missing"]
    comments = [line for line in missing if line.startswith("#")]
    assert f"'{failed}' (failed after 8 steps): Out of memory. rm -r x" in listed
    assert len(comments) == 3 and all(any(str(run) in line for line in comments) for run in (bad, also, running))
    assert "Lower --lr" in comments[0] + comments[1] and f"Missing runs: {len(missing)}." in out
    own = {str(run): [line for line in missing if f"{run}/settings.json" in line] for run in (stopped, failed, killed)}
    assert own[str(stopped)] == [f"python distill.py --config {stopped}/settings.json --max-minutes none --out runs"]
    assert own[str(killed)] == [f"python train_teacher.py --config {killed}/settings.json --out runs"]
    assert own[str(failed)] == [f"python train_teacher.py --config {failed}/settings.json --out runs"
                                "  # failed: Out of memory. rm -r x"]
    assert not any("resnet34 --seed 0" in line and line.startswith("python distill") for line in missing)


def test_the_command_of_a_stopped_run_continues_it(script):
    assert script("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "4"])[0] == 0
    words = [*PAIR, "--mode", "normal", "--max-steps", "4", "--save-every-minutes", "0"]
    assert script("train_teacher", ["--model", "kdwide", *TINY, "--max-steps", "4"])[0] == 0
    assert script("distill", [*words, "--temperature", "7", "--max-minutes", "0"])[0] == 143
    script("evaluate", ["--tables", "runs"])
    [table] = json.loads(Path("runs/tables.json").read_text())["protocols"][0]["tables"]
    assert table["cells"][0]["unfinished"] == {"stopped": 1}
    [command] = table["missing"]
    command = shlex.split(command)
    code, out = script(command[1].removesuffix(".py"), command[2:])
    assert code == 0 and "continuing from step 1 " in out and reports.read(RUN)["settings"]["temperature"] == [7.0]
    out = script("evaluate", ["--tables", "runs"])[1]
    assert "Unfinished" not in out and "No missing runs." in out and "(n = 1)" in out


def test_a_student_is_offered_again_once_its_teacher_is_trained(make):
    make("alone", "", "resnet18", 0)
    make("normal", "resnet50", "resnet34", 0)
    one = unfinish(make("normal", "resnet50", "resnet18", 0), ended="teacher diverged")
    chain = unfinish(make("self", "x", "resnet18", 0, lambda report: report["settings"].update(generations=2)),
                     ended="teacher diverged")

    def lines(run):
        found = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"]
        return [line[:8] for table in found for line in table["missing"] if str(run) in line and "settings.json" in line or
                f"Run '{run}'" in line]
    assert lines(one) == lines(chain) == ["# Run 'r"]
    make("alone", "", "resnet50", 0)
    assert lines(one) == ["python d"] and lines(chain) == ["# Run 'r"]


def test_a_table_and_an_overview_of_runs_that_all_diverged_are_printed(make):
    make("alone", "", "resnet18", 0)
    make("defective", "resnet50", "resnet18", 0)
    make("random", "resnet50", "resnet18", 0)
    unfinish(make("defective", "resnet34", "resnet18", 0), ended="diverged")
    unfinish(make("normal", "vgg11", "resnet18", 0), ended="diverged")
    protocol = tables.write_tables(Path("runs"), 0.01)["protocols"][0]
    table = next(table for table in protocol["tables"] if table["mode"] == "normal")
    assert [(cell["n"], cell["unfinished"]) for cell in table["cells"]] == [(0, {"diverged": 1})]
    rows = {(row["mode"], row["teacher"]): row for row in protocol["overviews"][0]["rows"]}
    assert rows["normal", "vgg11"]["unfinished"] == rows["defective", "resnet34"]["unfinished"] == {"diverged": 1}
    # A defective teacher without a finished student is no second one.
    assert rows["random", "resnet50"]["defective_minus"] is not None
    text = Path("runs/tables.md").read_text()
    assert "| diverged (1) |" in text and text.count("differences with 95 % intervals:") == 2  # none without finished runs


def test_runs_of_other_data_are_listed_but_in_no_cell(make):
    make("alone", "", "resnet18", 0)
    make("normal", "resnet50", "resnet18", 0)
    for seed, values in ((1, {"split_seed": 3}), (2, {"tag": "x"}), (3, {"cache_dir": "elsewhere", "labeled_seed": 5})):
        unfinish(make("normal", "resnet50", "resnet18", seed, lambda report: report["settings"].update(values)), ended="diverged")
    result = tables.write_tables(Path("runs"), 0.01)
    assert len(result["unfinished"]) == 3
    found = {(table["mode"], table["tag"]): table for table in result["protocols"][0]["tables"]}
    cells = [cell for cell in found["normal", ""]["cells"] if (cell["teacher"], cell["student"]) == ("resnet50", "resnet18")]
    assert [cell["unfinished"] for cell in cells] == [{"diverged": 1}] and not any("seed1" in line for line in found["normal", ""]["missing"])
    assert [cell["unfinished"] for cell in found["normal", "x"]["cells"]] == [{"diverged": 1}]


def test_an_untagged_network_counts_where_a_tagged_one_is_missing(make):
    make("alone", "", "resnet34", 0)
    unfinish(make("alone", "", "resnet18", 0), ended="diverged")
    make("normal", "resnet34", "resnet18", 0, lambda report: report["settings"].update(tag="x"))
    [table] = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"]
    assert [line[:7] for line in table["missing"]] == ["# Run '"]
    shutil.rmtree("runs/set/alone/-resnet18")
    unfinish(make("alone", "", "resnet18", 0), ended="diverged")
    make("alone", "", "resnet18", 0, lambda report: report["settings"].update(tag="x"), "runs/set/tagged/alone/seed0")
    unfinish(make("alone", "", "resnet34", 1), ended="stopped")
    [table] = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"]
    assert len(table["missing"]) == 1 and table["teachers"][0]["unfinished"] == {"stopped": 1}
    make("alone", "", "resnet34", 1, lambda report: report["settings"].update(tag="x"), "runs/set/tagged/teacher/seed1")
    [table] = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"]
    assert table["teachers"][0]["unfinished"] == {} and table["teachers"][0]["n"] == 1  # the one that taught


def test_failed_runs_of_data_that_nobody_trained_on_are_counted_only(make, script):
    make("alone", "", "resnet18", 0)
    make("normal", "resnet50", "resnet18", 0)
    own = unfinish(make("normal", "resnet50", "resnet18", 1), ended="failed", step=None, message="Own.")

    def other(seed, data, **ended):
        values = {"dataset": "folder", "data_dir": f"/films/{data}", "image_size": 32 + seed}
        where = make("normal", "resnet50", "resnet34", seed, lambda report: report["settings"].update(values))
        return unfinish(where, **{"ended": "failed", "step": None, "message": "Other."} | ended)
    two = [other(0, "typo"), other(1, "typing")]
    kept = [other(2, "chest"), other(3, "chest", step=5), other(4, "bone"), other(5, "bone", ended="stopped")]
    saved = other(6, "skull")
    (saved / "resume.pt").touch()  # it took steps before it failed at the beginning of its second start
    code, out = script("evaluate", ["--tables", "runs"])
    result = json.loads(Path("runs/tables.json").read_text())
    assert code == 0 and {one["folder"] for one in result["unfinished"]} == {*map(str, [own, *kept, saved])}
    [note] = [line for line in out.splitlines() if "not listed" in line]
    assert note.startswith("note: 2 failed runs are not listed") and all(out.count(str(run)) == note.count(str(run)) == 1 for run in two)
    page = Path("runs/study.html").read_text()
    assert all(str(run) not in page for run in two) and all(str(run) in page for run in kept)


@pytest.mark.parametrize("flag", ["--tables", "--arms"])
def test_a_folder_with_unfinished_runs_only_is_described(make, script, flag):
    bad = unfinish(make("normal", "resnet50", "resnet18", 0), ended="diverged")
    killed = unfinish(make("alone", "", "resnet18", 0))
    code, out = script("evaluate", [flag, "runs"])
    last = out.splitlines()[-1]
    assert code == 2 and "has no finished run" in last and f"'{bad}' (diverged)" in last and f"'{killed}' (interrupted)" in last
    assert f"unfinished: Run '{bad}' (diverged): It went wrong. Lower --lr." in out


@pytest.mark.case(11)
def test_damaged_and_foreign_files_of_unfinished_runs_hide_no_other(make, script, injected):
    make("alone", "", "resnet18", 0)
    texts = ("", "{", "[1]", '{"ended": 7}', '{"ended": "diverged"}', '{"ended": "diverged", "message": "x", "step": "y"}',
             '{"ended": "won", "message": "x", "step": 1}')
    for seed, text in enumerate(texts):
        unfinish(make("normal", "resnet50", "resnet18", seed)).joinpath("ended.json").write_text(text)
    broken = unfinish(make("normal", "resnet50", "resnet34", 0), ended="diverged")
    (broken / "settings.json").write_text('{"mode"')
    later = unfinish(make("normal", "resnet50", "resnet34", 1), ended="diverged")
    (later / "settings.json").write_text((later / "settings.json").read_text().replace('"normal"', '"unheard-of"'))
    Path("runs/editor").mkdir()
    Path("runs/editor/settings.json").write_text('{"editor.tabSize": 4}')
    injected(len(texts) + 3)
    code, out = script("evaluate", ["--tables", "runs"])
    result = json.loads(Path("runs/tables.json").read_text())
    assert code == 0 and [one["state"] for one in result["unfinished"]] == ["unfinished"] * len(texts)
    assert all("is damaged" in one["message"] for one in result["unfinished"]) and "unfinished (7)" in out
    assert len(result["left_out"]) == 2 and str(broken) in out and "unheard-of" in out and "editor" not in out


def test_a_lock_that_cannot_be_read_is_not_called_an_interruption(make, monkeypatch):
    unfinish(make("alone", "", "resnet18", 0))

    def refuse(where):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("kd.studies.unfinished.owner_of_lock", refuse)
    [[found], _] = read_unfinished(Path("runs"))
    assert found.state == "unfinished" and "may still be running" in found.message


def test_the_texts_of_a_cell():
    assert n_text(0, {}) == "-" and n_text(3, {}) == "(n = 3)"
    assert n_text(0, {"diverged": 2, "stopped": 1}) == "diverged (2), stopped (1)"
    assert n_text(1, {"diverged": 2, "stopped": 1}) == "(n = 1; 2 diverged; 1 stopped)"
    cell = {"student": "s", "teacher": "t", "minus_alone": None, "n": 0, "unfinished": {"diverged": 2}}
    axes = figures.heat_map({"title": "t", "teachers": [{"teacher": "t"}], "cells": [cell]}, "heading").axes[0]
    assert [text.get_text() for text in axes.texts] == ["diverged"]


def test_arms_count_unfinished_runs(prepared):
    few = [*TINY, "--epochs", "1", "--labeled-fraction", "0.3"]
    pair = ["--teacher", "kdwide", "--student", "kdtiny", *few]
    prepared([("distill", [*pair, "--mode", "unlabeled"]), ("train_teacher", ["--model", "kdtiny", *few, *HUGE]),
              ("distill", [*pair, "--mode", "unlabeled", "--seed", "1", "--labeled-seed", "1", "--max-minutes", "0",
                           "--teacher-checkpoint", "runs/synthetic-patient-32-labels0.3/teacher/kdwide/seed0/model.pt",
                           "--allow-foreign-teacher"]),
              ("distill", [*pair, "--mode", "normal", "--image-size", "16", "--max-minutes", "0"])])
    result = few_labels.write_arms(Path("runs"))
    [row] = result["groups"][0]["rows"]
    assert row["unfinished"]["alone"] == {"diverged": 1} and row["unfinished"]["unlabeled"] == {"stopped": 1}
    assert row["unfinished"]["normal"] == {} and row["unfinished"]["teacher"] == {}
    text = Path("runs/arms.md").read_text()
    assert "| diverged (1) |" in text and " (n = 1; 1 stopped) |" in text and "# Unfinished runs" in text
    assert len(result["unfinished"]) == 4  # with the teacher of the other image size


def test_a_folder_without_a_pool_names_its_unfinished_runs(make, script):
    make("alone", "", "resnet18", 0)
    bad = unfinish(make("normal", "resnet50", "resnet18", 0), ended="diverged")
    code, out = script("evaluate", ["--arms", "runs"])
    assert code == 2 and f"unfinished: Run '{bad}' (diverged" in out


def test_the_saved_state_of_a_stopped_run_is_no_finished_run(make):
    # A run that finished and was then started again by an earlier version may have both files.
    where = make("alone", "", "resnet18", 0)
    (where / "ended.json").write_text("{}")
    torch.save({}, where / "resume.pt")
    RunFolder(where).forget()
    assert sorted(file.name for file in where.iterdir()) == ["predictions.csv", "report.json", "settings.json"]
    assert read_unfinished(Path("runs")) == ([], [])
