"""Odd machines: no locks, no home, no terminal, other people's environment variables, names that are too long."""

import errno
import fcntl
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, PAIR, ROOT, RUN, TINY, same, weights
from PIL import Image
from test_layout import files, imports_of

from kd.config import lengths, paths
from kd.config.layout import LONGEST, slug
from kd.data.images import pixels
from kd.system import console, errors, locks, messages
from kd.system.errors import Problem, first_ten
from kd.system.files import cannot_write
from kd.system.locks import exclusive_lock, owner_of_lock, wait_for_lock

ALONE = ["--model", "kdtiny", *TINY, "--max-steps", "1"]


def python(code, **environment):
    """Run code in a process of its own; returns (exit code, stdout, stderr)."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean | environment, capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr


# ---- matplotlib

@pytest.mark.case(20)
@pytest.mark.case(24)
def test_neither_the_backend_of_a_notebook_nor_a_home_folder_that_cannot_be_written_matters():
    code = "import os; from kd.reports import figure_layout; print(os.environ['MPLBACKEND'])"
    backend = "module://a_package_of_a_notebook.backend"
    assert python(code, MPLBACKEND=backend, HOME="/dev/null/home") == (0, backend, "")


def test_a_valid_backend_is_kept_for_other_code_of_the_process():
    code = "from kd.reports import agg; import matplotlib; print(matplotlib.rcParams['backend'])"
    assert python(code, MPLBACKEND="svg")[:2] == (0, "svg")


def test_matplotlib_is_imported_after_its_backend_is_chosen():
    users = {path.name: path for path in files() if "import matplotlib" in path.read_text() or "from matplotlib" in path.read_text()}
    assert users.keys() >= {"agg.py", "figure_layout.py", "figures.py", "sheets.py"}
    for name, path in users.items():
        if name != "agg.py":
            text = path.read_text()
            assert "kd.reports.agg" in imports_of(path) and text.index("kd.reports.agg") < text.index("from matplotlib")


# ---- file systems without locks

@pytest.fixture
def no_locks(monkeypatch):
    """Let every lock fail as on a network file system without them."""
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_warned", set())


@pytest.mark.case(23)
def test_a_run_trains_without_locks_and_says_so_once(script, no_locks):
    words = [*PAIR, "--mode", "normal", "--max-steps", "1"]
    code, out = script("distill", words)
    found = [line for line in out.splitlines() if "without locks" in line]
    assert code == 0 and len(found) == 2 and all(line.startswith("warning: Run folder '") for line in found)  # student and teacher
    assert all("No locks available" in line and "Free space" not in line for line in found)
    code, out = script("distill", words)
    assert code == 0 and "already finished" in out and "without locks" not in out and (RUN / ".lock").read_text() == ""


@pytest.mark.case(23)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_each_way_to_have_no_locks_is_known(number, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive_lock(tmp_path / "run"), wait_for_lock(tmp_path):
        assert os.strerror(number) in capsys.readouterr().out


@pytest.mark.case(23)
def test_another_failure_of_a_lock_is_not_the_lack_of_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(Problem, match="Input/output error") as problem, exclusive_lock(tmp_path):
        pass
    assert problem.value.code == 74


@pytest.mark.case(23)
def test_without_locks_a_second_process_is_refused_by_name(tmp_path, no_locks):
    owner = f"process {os.getpid()} on {os.uname().nodename}"
    with exclusive_lock(tmp_path):
        assert owner_of_lock(tmp_path) == owner
        with pytest.raises(Problem, match=f"in use by {owner}. Wait") as problem, exclusive_lock(tmp_path):
            pass
    assert problem.value.code == 75 and owner_of_lock(tmp_path) is None


@pytest.mark.case(2, 23)
def test_without_locks_a_killed_process_of_this_machine_holds_nothing(tmp_path, no_locks):
    child = os.fork()
    if not child:
        with exclusive_lock(tmp_path):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert f"process {child} on" in (tmp_path / ".lock").read_text() and owner_of_lock(tmp_path) is None
    # the number of the killed process may be that of another by now
    (tmp_path / ".lock").write_text(f"process {os.getpid()} on {os.uname().nodename}\nno locks, started at 1\n")
    with exclusive_lock(tmp_path):
        assert str(os.getpid()) in owner_of_lock(tmp_path)


@pytest.mark.case(23)
def test_without_locks_a_process_of_another_machine_may_still_run(tmp_path, no_locks):
    (tmp_path / ".lock").write_text("process 7 on node3\nno locks, started at 5\n")
    with pytest.raises(Problem, match="process 7 on node3, unless that was killed.*delete '.*/.lock'") as problem, exclusive_lock(tmp_path):
        pass
    assert problem.value.code == 75
    with pytest.raises(OSError):
        owner_of_lock(tmp_path)
    (tmp_path / ".lock").write_text("process 7 on node3\n")  # left by a lock, which is released
    with exclusive_lock(tmp_path):
        pass


# ---- names and paths

@pytest.mark.case(20)
@pytest.mark.parametrize("words, part, cure", [
    (["--tag", "t" * 201], "--tag 'ttt", "shorter --tag"),
    (["--out", "runs/" + "o" * 256], "'ooo", "shorter --out"),
    (["--out", "/".join(["o" * 200] * 21)], "4,|bytes from the root", "shorter --out"),
    (["--cache-dir", "c" * 300], "'ccc", "shorter --cache-dir"),
])
def test_names_that_are_too_long_are_refused_in_one_line(script, words, part, cure):
    code, out = script("distill", [*PAIR, "--mode", "normal", *words])
    assert code == 2 and out.startswith("error: ") and out.count("\n") == 0 and len(out) < 500
    assert any(word in out for word in part.split("|")) and cure in out and not Path("runs").exists()


@pytest.mark.case(20)
def test_an_ensemble_whose_name_is_too_long_is_refused(script):
    teachers = ["mobilenetv3_small_050.lamb_in1k", "seresnext101_32x8d.ah_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
                "resnet18.fb_swsl_ig1b_ft_in1k", "efficientnet_b0.ra4_e3600_r224_in1k", "convnext_tiny.in12k_ft_in1k_384",
                "swin_tiny_patch4_window7_224.ms_in1k", "deit_tiny_patch16_224.fb_in1k"]
    code, out = script("distill", [*PAIR, "--mode", "normal", "--teacher", "+".join(teachers)])
    assert code == 2 and "bytes, but the file system takes names of at most 255. Use fewer networks" in out and len(out) < 500


@pytest.mark.case(20)
def test_a_file_system_with_shorter_names_is_asked(script, monkeypatch):
    monkeypatch.setattr(lengths.os, "pathconf", lambda path, name: {"PC_NAME_MAX": 40, "PC_PATH_MAX": 4096}[name])
    code, out = script("train_teacher", [*ALONE, "--tag", "t" * 40])
    assert code == 2 and "at most 40. Use a shorter --tag" in out and "teacher-ttt" in out


def test_a_long_name_of_a_data_set_is_shortened(script, picture_tree):
    assert slug("x" * LONGEST) == "x" * LONGEST and len(slug("x" * 300)) == LONGEST and slug("x" * 300) != slug("x" * 301)
    root = picture_tree("d" * 250, {"a": 10, "b": 10})
    words = ["--dataset", "folder", "--data-dir", root]
    assert script("train_teacher", [*ALONE, *words])[0] == 0
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    assert (run / "report.json").is_file()
    code, out = script("evaluate", ["--check-data", *words])
    assert "written: runs/check-ddd" in out
    code, out = script("evaluate", [run, *words])
    assert code == 0, out


@pytest.mark.case(24)
def test_the_cure_fits_the_cause():
    cures = {errno.ENOSPC: "Free space", errno.ENAMETOOLONG: "shorter", errno.EROFS: "make this one writable"}
    for number, cure in cures.items():
        text = str(cannot_write(Path("x"), OSError(number, os.strerror(number))))
        assert cure in text and ("Free space" in text) == (cure == "Free space")
    assert "None" not in errors.described(OSError("no number"))[0]


@pytest.mark.case(20)
def test_home_and_variables_in_paths_of_flags_and_files(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOWHERE", raising=False)
    Path("home").mkdir()
    Path("home/a.toml").write_text('out = "$SCRATCH/runs"\ncache_dir = "~/cache"\nunlabeled_dir = "~"\n')
    words = ["--config", "~/a.toml", "--data-dir=~/set", "--teacher-checkpoint", "~/a.pt", "${SCRATCH}/b.pt", "--dry-run"]
    code, out = script("distill", [*words, "--weights", "a$5_50%"])
    assert code == 0
    for line in ("data_dir = 'HOME/set'", "out = 'SCRATCH/runs'", "cache_dir = 'HOME/cache'", "unlabeled_dir = 'HOME'",
                 "teacher_checkpoint = ['HOME/a.pt', 'SCRATCH/b.pt']", "weights = 'a$5_50%'"):
        line = line.replace("HOME", str(tmp_path / "home")).replace("SCRATCH", str(tmp_path / "scratch")).replace("'", '"')
        assert line in out.splitlines()
    code, out = script("evaluate", ["~/nothing"])
    assert code == 4 and f"{tmp_path}/home/nothing" in out
    assert script("train_teacher", [*ALONE, "--out=~/runs", "--cache-dir", "~/cache"])[0] == 0
    assert (tmp_path / "home/runs").is_dir() and (tmp_path / "home/cache").is_dir() and not Path("~").exists()


@pytest.mark.case(20)
@pytest.mark.parametrize("given, why", [("~nobody-of-this-name/runs", "home folder of user 'nobody-of-this-name' is not known"),
                                        ("$NOWHERE/runs", "variable NOWHERE is not set"), ("a/${NOWHERE}", "variable NOWHERE is not set")])
def test_a_user_or_variable_that_does_not_exist_is_refused(script, given, why, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    code, out = script("train_teacher", [*ALONE, "--out", given])
    assert code == 2 and why in out and not any(Path(".").iterdir())
    Path(given).mkdir(parents=True)  # it exists, so it is meant
    assert paths.expanded(given, "--out") == given


# ---- messages

def test_messages_are_bounded_and_have_no_addresses():
    text = f"'/{'x' * 600}' cannot be read (<_io.BytesIO object at 0x7f12ab>). Use another."
    assert messages.bounded("short at 0x7fab") == "short"
    assert len(messages.bounded(text)) < 200 and messages.bounded(text).endswith("cannot be read (<_io.BytesIO object>). Use another.")
    assert len(messages.bounded("word " * 300)) == messages.LONGEST
    assert messages.first_line(ValueError("<f at 0x12>\nmore")) == "<f>" and messages.first_line(KeyError()) == "KeyError"
    assert first_ten([f"row {k} 'gone{k}.png' (no such file)" for k in range(25)]).endswith("row 9 'gone9.png' (no such file), ... (25 in all)")
    listed = first_ten(["y" * 5000] * 3)
    assert len(listed) < 400 and listed.endswith("(3 in all)")


@pytest.mark.parametrize("text", ["note: " + "a, " * 400, "warning: '" + "/".join(["folder with blanks"] * 60) + "'. Do this."])
def test_a_message_on_the_console_is_bounded_but_a_table_is_not(text, capsys):
    console.log(text)
    errors.print_on_stderr(text)
    console.log(f"| a |\n{text}")
    captured = capsys.readouterr()
    bounded, _, table, _ = captured.out.split("\n")
    assert len(bounded) <= 500 and bounded == captured.err.strip("\n") and bounded[-5:] == text[-5:] and table == text


@pytest.mark.case(21)
def test_a_thousand_classes_do_not_make_a_long_message(script, picture_tree):
    root = picture_tree("set", {f"class {k:04d} with a long name": 1 for k in range(1000)})
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root])
    assert code == 2 and len(out.splitlines()[-1]) < 700 and max(map(len, out.splitlines()[:-1]), default=0) <= 500
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", root, "--graded"])
    assert code == 2 and "are not grades" in out and len(out.splitlines()[-1]) < 700


def test_an_image_below_the_limit_is_no_bomb(tmp_path):
    Image.new("1", (9500, 9600)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels.decode((tmp_path / "large.png").read_bytes(), 32).image.size == (9500, 9600)
    Image.new("1", (10001, 10000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="more than 100 million"):
        pixels.decode((tmp_path / "large.png").read_bytes(), 32)


# ---- class names

ODD = ("accuracy", "macro avg", "weighted avg", "class accuracy", "nan", "None", "true", "0", "part", "path", "logit_x", 'a, "b"', "=1+1",
       "x|y", "[x](y)", "back\\slash", "正常", "صدر", "🫁", "$5_50%", "_under")


@pytest.mark.draws
@pytest.mark.case(22)
@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_no_name_of_a_class_is_special(script, tmp_path):
    from kd.reports import report as reports
    from kd.reports.predictions import read_predictions
    random = np.random.default_rng(0)
    for name in ODD:
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8)).save(tmp_path / "set" / name / f"{number}.png")
    code, out = script("train_teacher", [*ALONE, "--dataset", "folder", "--data-dir", tmp_path / "set"])
    assert code == 0, out
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    report = reports.read(run)
    table = report["classification_report"]
    assert len(table) == len(ODD) + 3 and isinstance(table["accuracy"], float) and table["macro avg"]["support"] == report["data"]["parts"]["test"]
    assert table["class macro avg"]["support"] == report["data"]["per_class"]["test"][report["data"]["classes"].index("macro avg")]
    predictions = read_predictions(run)
    assert (predictions.logits.argmax(1) == predictions.labels).mean() == report["results"]["best"]["test_accuracy"]
    assert np.bincount(predictions.labels, minlength=len(ODD)).tolist() == report["data"]["per_class"]["test"]
    code, out = script("evaluate", [run])
    assert code == 0 and "(reproduced)" in out and "\nclass class accuracy" in out
    code, out = script("evaluate", ["--curves", run])
    assert code == 0, out


# ---- progress where no one watches

@pytest.fixture
def every_step(monkeypatch):
    """Print a line at every update."""
    monkeypatch.setattr(console, "INTERVAL", 0.0)


def test_a_log_shows_the_progress_of_everything_long(script, every_step):
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    lines = [line for line in out.splitlines() if line.endswith(" left")]
    assert code == 0 and all(len(line) < 120 for line in lines)
    for begin in ("decoding: 1/", "train: epoch 1, step 1/", "predicting: "):
        assert any(line.startswith(begin) for line in lines), begin
    last = [line for line in lines if line.startswith("train: ")][-1]
    assert re.fullmatch("train: epoch 2, step ([0-9]+)/\\1  loss [0-9.]+  [0-9.]+ s per 100 steps, about 0 s left", last)
    assert weights(RUN) and "comparing" not in out  # drawings have no files
    code, out = script("evaluate", [RUN])
    assert code == 0 and "predicting: " in out


def test_files_and_headers_are_counted_too(script, every_step, picture_tree):
    root = picture_tree("set", {"a": 8, "b": 8})
    code, out = script("evaluate", ["--check-data", "--dataset", "folder", "--data-dir", root])
    for begin in ("reading: 16/16 images", "comparing: 16/16 files", "headers: 16/16 files"):
        assert begin in out, begin


def test_lines_of_progress_come_every_interval_and_tell_the_time_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    shown = console.ProgressLines(1000, "images", lambda done: f"decoding: {done}/1000 images", done=100)
    for _ in range(90):
        clock[0] += 1
        shown.update(2)
    assert capsys.readouterr().out.splitlines() == [
        "decoding: 160/1000 images  50 s per 100 images, about 7 min left",
        "decoding: 220/1000 images  50 s per 100 images, about 6 min left",
        "decoding: 280/1000 images  50 s per 100 images, about 6 min left"]
    clock[0] += 29
    shown.postpone()
    clock[0] += 29
    shown.update(2)
    assert capsys.readouterr().out == ""
    assert [console.duration(seconds) for seconds in (0, 89, 90, 5399, 5400)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]


def test_on_a_terminal_there_is_a_bar_and_no_line(monkeypatch, every_step, capsys):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with console.progress(3, "decoding", "images") as shown:
        shown.update()
    captured = capsys.readouterr()
    assert captured.out == "" and "decoding" in captured.err


def test_only_the_main_rank_prints_progress(monkeypatch, every_step, capsys):
    monkeypatch.setattr(console.ranks, "rank", lambda: 1)
    with console.progress(3, "decoding", "images") as shown:
        shown.update()
    assert capsys.readouterr() == ("", "")


def test_lines_of_progress_do_not_change_the_weights_and_nothing_short_prints_any(script, monkeypatch):
    words = [*ALONE, "--max-steps", "4"]
    code, out = script("train_teacher", words)
    assert code == 0 and " left" not in out
    monkeypatch.setattr(console, "INTERVAL", 0.0)
    code, out = script("train_teacher", [*words, "--out", "other"])
    assert code == 0 and " left" in out
    first = DATA / "teacher/kdtiny/seed0"
    assert same(weights(first), weights("other" / first.relative_to("runs")))
