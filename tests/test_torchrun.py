"""Tests with the real torchrun: every mode, two agents as two machines, a killed rank, SIGTERM.

They are slow, because each rank imports torch.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, same, weights

from kd.methods import MODES
from kd.reports import report as reports
from kd.system.files import read_json

pytestmark = pytest.mark.slow
COMMON = ["--teacher", "resnet34", "--student", "resnet18", "--dataset", "synthetic", "--synthetic-images", "196", "--image-size",
          "32", "--batch-size", "24", "--epochs", "2", "--lr", "1e-3", "--no-pretrained", "--device", "cpu", "--amp", "off"]
RUN = "synthetic-patient-32/{mode}/resnet34-resnet18/seed0"


def torchrun(*words, agent=("--nproc-per-node", "2"), **options):
    """Start torchrun with two ranks on this machine, in its own process session."""
    command = [sys.executable, "-m", "torch.distributed.run", *agent, str(ROOT / "distill.py"), *COMMON, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                            start_new_session=True, **options)


def finish(process, seconds=300):
    out = process.communicate(timeout=seconds)[0]
    return process.returncode, out


def ranks_of(process):
    """Return the process ids of the ranks of a torchrun."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if "distill.py" in Path(f"/proc/{pid}/cmdline").read_text()]


def until(what, seconds=120):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert what()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_under_torchrun(mode):
    more = ["--stop-at-val-accuracy", "0.5"] if mode == "defective" else []
    if more:  # a teacher that is defective after so few steps
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train_teacher.py"),
                        "--model", "resnet34", *COMMON[4:], "--stop-at-val-accuracy", "0.1", "--look-every", "1"], check=True)
    students = ["--student", "resnet18+resnet34"] if MODES[mode].trains_several else []
    code, out = finish(torchrun("--mode", mode, *students))
    assert code == 0 and "; 2 ranks (cpu x 2), 24 images per step in total" in out, out
    runs = list(Path("runs").glob(f"*/{mode}/*/seed0"))
    assert len(runs) == 1 + bool(students) and {reports.read(run)["history"]["steps"] for run in runs} == {12}


def test_two_agents_as_two_machines_leave_one_report():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
             "--rdzv-id", "7")
    machines = [torchrun("--mode", "normal", "--cache-dir", f"cache{k}", agent=agent) for k in range(2)]
    outs = [finish(machine) for machine in machines]
    assert [code for code, _ in outs] == [0, 0], outs
    assert len(list(Path("runs").glob("*/normal/*/*/report.json"))) == 1
    assert sum("results: " in out for _, out in outs) == 1


@pytest.mark.case(27)
def test_a_killed_rank_ends_the_job_within_a_minute_and_the_run_goes_on():
    words = ["--mode", "random", "--save-every-minutes", "0", "--epochs", "40"]  # the mode random: its teacher needs no training
    process, run = torchrun(*words), Path("runs") / RUN.format(mode="random")
    until(lambda: (run / "resume.pt").exists() or process.poll() is not None)
    pids = ranks_of(process)
    os.kill(pids[-1], signal.SIGKILL)
    begun = time.monotonic()
    code, out = finish(process, 60)
    assert code != 0 and time.monotonic() - begun < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert torch.load(run / "resume.pt", weights_only=True)["state"]["progress"]["total"] > 0
    code, out = finish(torchrun(*words, "--max-minutes", "0"))
    assert "continuing from step" in out and "saved in" in out


def test_sigterm_to_torchrun_saves_once_and_the_run_goes_on_exactly():
    words = ["--mode", "random", "--epochs", "8"]
    assert finish(torchrun(*words, "--out", "whole"))[0] == 0
    process, run = torchrun(*words), Path("runs") / RUN.format(mode="random")
    until(lambda: (run / "settings.json").exists() or process.poll() is not None)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    code, out = finish(process, 90)
    assert code != 0 and (run / "resume.pt").exists(), out
    assert read_json(run / "ended.json")["ended"] == "stopped"
    code, out = finish(torchrun(*words))
    assert code == 0 and "continuing from step" in out, out
    assert not (run / "ended.json").exists()
    assert same(weights(run), weights(Path("whole") / RUN.format(mode="random")))
