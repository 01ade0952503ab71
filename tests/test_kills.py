"""Nothing is lost when a run is killed, stopped, out of time or out of disk space.

Continued afterwards, it has the same result as an undisturbed run.
"""

import dataclasses
import errno
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY
from faults import CRASHED, Child, DieAt, in_child, limit_files
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd import loop, losses, models
from kd.config.settings import Training
from kd.data import store
from kd.reports import report as reports
from kd.runs import finish
from kd.runs.folder import RunFolder
from kd.runs.tensorboard import Events
from kd.system import checkpoint, files
from kd.system.devices import Precision
from kd.system.files import read_json, write_json
from kd.system.signals import StopSignals
from kd.training import objectives
from kd.training.state import Progress, State

DISTIL = [*PAIR, "--mode", "normal", "--save-every-minutes", "0"]
PHASES = [*PAIR, "--mode", "unlabeled", "--labeled-fraction", "0.3", "--epochs", "3", "--save-every-minutes", "0"]
ALONE = ["--model", "kdtiny", *TINY, "--save-every-minutes", "0"]
STUDENT_ALONE = DATA / "teacher/kdtiny/seed0"


def call(name, argv):
    return lambda: __import__(name).main(list(argv))


def chains(default, slow):
    """Return parameters (seed, maximum number of strikes).

    There are `default` short chains and, as slow tests, `slow` chains that continue until a run ends undisturbed.
    """
    return [(seed, 3) for seed in range(default)] + [pytest.param(default + seed, 1000, marks=pytest.mark.slow)
                                                     for seed in range(slow)]


def undisturbed(folder, *commands):
    """Return (the folder with undisturbed runs of the commands, the seconds that the first one took)."""
    before, seconds = os.getcwd(), []
    os.chdir(folder)
    for name, argv in commands:
        begun = time.monotonic()
        assert in_child(call(name, argv)).code == 0
        seconds.append(time.monotonic() - begun)
    os.chdir(before)
    return folder, seconds[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("whole"), ("distill", DISTIL), ("train_teacher", ALONE))


@pytest.fixture(scope="module")
def whole_of_two_phases(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("phases"), ("distill", PHASES))


def result(folder):
    """Return what is compared between runs: the report without the clock, the weights, and TensorBoard's points."""
    report = reports.read(folder)
    del report["clock"]
    for key in ("save_every_minutes", "max_minutes"):
        del report["settings"][key]
    model = torch.load(folder / "model.pt", weights_only=True)
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
              if not tag.startswith("clock/")}
    return report, {key: value.tolist() for key, value in model["state_dict"].items()}, points


def assert_as_if_nothing_had_been(whole, *folders):
    for folder in folders:
        expected, found = result(whole[0] / folder), result(folder)
        assert found[0] == expected[0] and found[1] == expected[1] and found[2] == expected[2]
        assert all(len({step for step, _ in points}) == len(points) for points in found[2].values())
        assert not [file.name for file in folder.iterdir() if file.name.startswith("resume") or file.name.endswith(".tmp")]


def disturbed(command, strike, chance, longest, most):
    """Run `command` again and again until it ends, and return the number of strikes.

    `strike(child)` disturbs each of the first `most` attempts at a random moment. The first one comes within a quarter of
    `longest` seconds.
    """
    strikes = 0
    for _ in range(200):
        child, allowed = Child(command), ()
        if strikes < most:
            # The first strike comes early enough. Later ones leave more and more time, so that a busy machine gets through.
            time.sleep(chance.uniform(0.02, longest * (1 + strikes / 20) if strikes else longest / 4))
            allowed = strike(child)
        code = child.wait()
        assert code in (0, *allowed) and "Traceback" not in child.err, (code, child.err)
        assert not child.err.count("error:") > 1
        if code == 0 and strikes:
            return strikes
        if code == 0:  # the machine is faster than when `longest` was measured: start again with earlier strikes
            shutil.rmtree("runs")
            longest /= 2
        else:
            strikes += 1
    raise AssertionError("no progress in 200 tries")


def killed(child):
    """Strike with kill -9; return the exit codes that are allowed."""
    child.kill(signal.SIGKILL)
    return (-signal.SIGKILL,)


@pytest.mark.case(2, 26)
@pytest.mark.parametrize("seed, most", chains(5, 100))
def test_a_chain_of_kills_at_random_moments_loses_nothing(whole, injected, seed, most):
    injected(disturbed(call("distill", DISTIL), killed, random.Random(seed), 0.8 * whole[1], most))
    assert_as_if_nothing_had_been(whole, RUN, TEACHER)


@pytest.mark.case(2, 26)
@pytest.mark.parametrize("seed, most", chains(0, 30))
def test_a_chain_of_kills_through_two_phases_loses_nothing(whole_of_two_phases, injected, seed, most):
    injected(disturbed(call("distill", PHASES), killed, random.Random(seed), 0.8 * whole_of_two_phases[1], most))
    few = Path("runs/synthetic-patient-32-labels0.3")
    assert_as_if_nothing_had_been(whole_of_two_phases, few / "unlabeled/kdwide-kdtiny/seed0", few / "teacher/kdwide/seed0")


@pytest.mark.case(6)
@pytest.mark.parametrize("seed, most", chains(3, 50))
def test_a_chain_of_stop_signals_at_random_moments_loses_nothing(whole, injected, seed, most):
    chance = random.Random(1000 + seed)

    def strike(child):
        number = chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        child.kill(number)
        # Before and after the run itself there is nothing to save, and a signal has its default effect.
        return (130,) if number == signal.SIGINT else (143, -number)

    injected(disturbed(call("distill", DISTIL), strike, chance, 0.8 * whole[1], most))
    assert_as_if_nothing_had_been(whole, RUN, TEACHER)


@pytest.mark.case(7)
@pytest.mark.parametrize("seed, most", chains(3, 50))
def test_two_ctrl_c_at_once_end_the_run_and_lose_nothing(whole, injected, seed, most):
    chance = random.Random(2000 + seed)

    def strike(child):
        child.kill(signal.SIGINT)
        time.sleep(chance.choice([0, 0.001, 0.01]))
        child.kill(signal.SIGINT)
        return (130,)

    injected(disturbed(call("train_teacher", ALONE), strike, chance, 0.5 * whole[1], most))
    assert_as_if_nothing_had_been(whole, STUDENT_ALONE)


@pytest.mark.case(6)
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
@pytest.mark.parametrize("owner, name", [(store.Store, "_decode_row"), (losses, "cross_entropy"), (loop, "_row"),
                                         (files, "_fsync"), (objectives, "gradient_ratio"), (finish, "predict")])
def test_a_stop_signal_in_every_phase_saves_and_ends(whole, owner, name, number, code):
    """Stop while decoding, in a step, in validation, while saving, while evaluating the teacher, in the final predictions."""
    command = call("distill", DISTIL) if name == "gradient_ratio" else call("train_teacher", ALONE)

    def signalled():
        original, done = getattr(owner, name), []

        def wrapper(*arguments):
            if not done and (owner is not files or "resume" in str(arguments[0])):
                done.append(os.kill(os.getpid(), number))
            return original(*arguments)

        setattr(owner, name, wrapper)
        return command()

    stopped = in_child(signalled)
    assert stopped.code == code and "Run the same command again to continue." in stopped.err and "Traceback" not in stopped.err
    assert in_child(command).code == 0
    assert_as_if_nothing_had_been(whole, *((RUN, TEACHER) if name == "gradient_ratio" else (STUDENT_ALONE,)))


@pytest.mark.case(8)
def test_a_time_budget_stops_after_a_step_saves_and_tells_how_to_go_on(whole, injected):
    for step in (1, 2, 3):
        child = in_child(call("train_teacher", [*ALONE, "--max-minutes", "0"]))
        assert child.code == 143 and f"at step {step}. The state was saved in" in child.err, child.err
        assert "Stopped by --max-minutes 0" in child.err and "Run the same command again" in child.err
    assert in_child(call("train_teacher", [*ALONE, "--max-minutes", "5"])).code == 0
    injected(3)
    assert_as_if_nothing_had_been(whole, STUDENT_ALONE)


@pytest.mark.case(1)
@pytest.mark.parametrize("mode, teacher, student", [
    pytest.param("normal", "kdwide", "kdtiny", marks=pytest.mark.slow),  # covered by the chains of kills
    pytest.param("reverse", "kdtiny", "kdwide", marks=pytest.mark.slow), ("defective", "kdwide", "kdtiny"),
    pytest.param("unlabeled-only", "kdwide", "kdtiny", marks=pytest.mark.slow)])
def test_every_mode_goes_on_exactly(mode, teacher, student):
    stop = ["--stop-at-val-accuracy", "0.01", "--look-every", "2"] if mode == "defective" else []
    taught = ["--model", teacher, *TINY, *stop, "--epochs", "1"]
    argv = ["--teacher", teacher, "--student", student, "--mode", mode, *TINY, "--epochs", "1", "--save-every-minutes", "0"]

    def inside(folder, name, argv):
        def run():
            Path(folder).mkdir(exist_ok=True)
            os.chdir(folder)
            return call(name, argv)()
        return in_child(run).code

    for folder in ("undisturbed", "stopped"):
        assert inside(folder, "train_teacher", taught) == 0
    assert inside("undisturbed", "distill", argv) == 0
    for _ in range(2):
        assert inside("stopped", "distill", [*argv, "--max-minutes", "0"]) == 143
    assert inside("stopped", "distill", argv) == 0
    run = DATA / mode / f"{teacher}-{student}" / "seed0"
    assert result("stopped" / run) == result("undisturbed" / run)


@pytest.fixture
def begun():
    """Return a run after its first steps, saved twice: (the folder, the contents of its resume files)."""
    for _ in range(2):
        assert in_child(call("train_teacher", [*ALONE, "--max-minutes", "0"])).code == 143
    folder = RunFolder(STUDENT_ALONE)
    return folder, {file.name: file.read_bytes() for file in (folder.resume, folder.previous)}


@pytest.mark.case(4)
def test_a_full_disk_while_saving_keeps_the_last_good_file(whole, begun):
    folder, before = begun
    assert all(len(content) > 20_000 for content in before.values())

    def on_a_full_disk():
        limit_files(20_000)
        return call("train_teacher", ALONE)()

    full = in_child(on_a_full_disk)
    assert full.code == 74 and "disk full" in full.err and "Traceback" not in full.err
    assert {file.name: file.read_bytes() for file in (folder.resume, folder.previous)} == before
    assert not list(folder.path.glob(".*.tmp"))
    assert in_child(call("train_teacher", ALONE)).code == 0
    assert_as_if_nothing_had_been(whole, STUDENT_ALONE)


@pytest.mark.draws
@pytest.mark.case(5)
def test_a_full_disk_under_tensorboard_and_the_figure_is_a_warning_each(whole):
    shutil.copytree(whole[0] / "cache", "cache")

    save = Image.Image.save

    def no_space(drawing, target, **options):
        if isinstance(target, Path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(drawing, target, **options)

    def on_a_full_disk():
        limit_files(60_000)
        Image.Image.save = no_space  # the size of a figure depends on matplotlib
        return call("train_teacher", ALONE)()

    full = in_child(on_a_full_disk)
    assert full.code == 0 and "Traceback" not in full.err and "Exception" not in full.err, full.err
    warnings = [line for line in full.out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 3 and all("disk full" in line for line in warnings)
    assert [word in line for word, line in zip(("confusion.png", "reliability.png", "TensorBoard"), warnings)] == [True] * 3
    assert not list(STUDENT_ALONE.glob("*.png"))
    assert result(STUDENT_ALONE)[:2] == result(whole[0] / STUDENT_ALONE)[:2]


@pytest.mark.case(5)
def test_a_full_disk_under_tensorboard_in_the_middle_is_one_warning():
    def on_a_full_disk():
        state = State(models.build("kdtiny", tuple("abc")), Training(), Precision("cpu", "off"))
        events = Events(Path("."), state)
        limit_files(3_000)
        for epoch in range(200):
            events.epoch({"epoch": epoch, "steps": epoch, "valid_accuracy": 0.5})
            events.flush()
        events.close()

    full = in_child(on_a_full_disk)
    assert full.code == 0 and full.out.count("warning:") == 1 and "disk full" in full.out and not full.err


@pytest.mark.case(5)
@pytest.mark.parametrize("name", ["report.json", "predictions.csv", "settings.json"])
def test_a_full_disk_under_a_result_loses_no_training(whole, name):
    argv = [*ALONE, "--save-every-minutes", "5"]

    def on_a_full_disk():
        write_text = Path.write_text

        def full(path, text, *arguments):
            return write_text(Path("/dev/full") if f".{name}." in path.name else path, text, *arguments)

        Path.write_text = full
        return call("train_teacher", argv)()

    full = in_child(on_a_full_disk)
    assert full.code == 74 and "disk full" in full.err and name in full.err and "Traceback" not in full.err
    again = in_child(call("train_teacher", argv))
    assert again.code == 0 and ("continuing from step 12" in again.out) == (name != "settings.json")
    assert_as_if_nothing_had_been(whole, STUDENT_ALONE)


@pytest.mark.case(4)
def test_a_disk_that_is_full_from_the_start_is_told(whole):
    def on_a_full_disk():
        limit_files(0)
        return call("train_teacher", ALONE)()

    full = in_child(on_a_full_disk)  # the child's output cannot be written either
    assert full.code == 74
    assert in_child(call("train_teacher", ALONE)).code == 0
    assert_as_if_nothing_had_been(whole, STUDENT_ALONE)


@pytest.mark.case(7)
def test_a_second_ctrl_c_inside_a_large_save_ends_at_once_and_keeps_the_old_file():
    Path("run").mkdir()
    checkpoint.save(Path("run/file.pt"), {"large": torch.zeros(30_000_000)})

    def save_for_seconds():
        with StopSignals():
            Path("begun").touch()
            for _ in range(100):
                checkpoint.save(Path("run/file.pt"), {"large": torch.zeros(30_000_000)})

    for number in range(4):
        Path("begun").unlink(missing_ok=True)
        child = Child(save_for_seconds)
        while not Path("begun").exists():
            time.sleep(0.005)
        time.sleep(0.15 + 0.05 * number)
        while child.alive:  # Python sees two signals as one if both arrive while C code runs
            child.kill(signal.SIGINT)
            time.sleep(0.1)
        assert child.wait() == 130 and "Interrupted" in child.err and "Traceback" not in child.err, child.err
        assert len(checkpoint.load(Path("run/file.pt"))["large"]) == 30_000_000


@pytest.mark.case(5)
def test_a_log_that_cannot_be_written_ends_no_training(whole):
    def to_a_full_disk():
        sys.stdout = open("/dev/full", "w", buffering=1)
        return call("train_teacher", ALONE)()

    assert in_child(to_a_full_disk).code == 0
    assert_as_if_nothing_had_been(whole, STUDENT_ALONE)


def contents(number):
    torch.manual_seed(number)
    state = {"weights": {"w": torch.randn(60, 60)}, "helper": {}, "optimizer": {}, "scaler": {}, "best_weights": None,
             "progress": dataclasses.asdict(Progress())}
    return {"state": state, "split_hash": str(number), "content_hash": "", "pool_hash": None, "precision": "", "teacher": None,
            "clock": {"seconds": 0.0, "started": ""}}


class Fixed:
    """A state with fixed content."""

    def __init__(self, number):
        self.number = number

    def state_dict(self):
        return contents(self.number)["state"]


def save_resume(number):
    more = contents(number)
    del more["state"]
    RunFolder(Path("run")).save([Fixed(number)], **more)


def save_after_damage(number):
    """Save as a run that falls back to the previous file: version 2 is there, beside a damaged newest file."""
    folder = RunFolder(Path("run"))
    if number == 2:
        save_resume(2)
        folder.resume.replace(folder.previous)
        folder.resume.write_bytes(b"damaged")
    elif number == 3:
        assert folder.load()["split_hash"] == "2"
        save_resume(3)


# name -> (write version n, read it back: returns a version or raises Problem)
WRITERS = {
    "resume": (save_resume, lambda: int(RunFolder(Path("run")).load()["split_hash"])),
    "resume after damage": (save_after_damage, lambda: int(RunFolder(Path("run")).load()["split_hash"])),
    "model": (lambda number: checkpoint.save(Path("run/model.pt"), contents(number)),
              lambda: int(checkpoint.load(Path("run/model.pt"))["split_hash"])),
    "report": (lambda number: write_json(Path("run/report.json"), {"version": number, "long": "x" * 20_000}),
               lambda: read_json(Path("run/report.json"))["version"])}


@pytest.mark.case(3, 25)
@pytest.mark.parametrize("step", [pytest.param(997), pytest.param(61, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_at_every_call_and_in_every_write_leaves_the_old_file_or_the_new_one(injected, name, step):
    write, read = WRITERS[name]
    Path("run").mkdir()
    for number in (1, 2):
        write(number)

    def attempt(fault):
        """Write version 3 in a child with a fault, and return whether the child survived.

        Version 2 or 3 must be there in any case. Version 2 is there afterwards.
        """
        def child():
            fault()
            write(3)
        code = in_child(child).code
        assert code in (0, -signal.SIGKILL, -signal.SIGXFSZ) and code != CRASHED
        assert read() in (2, 3) and (code != 0 or read() == 3)
        for leftover in Path("run").glob(".*.tmp"):
            leftover.unlink()
        write(2)
        return code == 0

    count = 0
    for after in (False, True):
        k = 1
        while not attempt(lambda: DieAt(k, after)):
            k += 1
        count += k - 1
    size = max(file.stat().st_size for file in Path("run").iterdir())
    for byte in range(0, size, step):
        assert not attempt(lambda: limit_files(byte, deadly=True))
        count += 1
    assert count > 20 + size // step
    injected(count)
