"""Shared by all tests: tiny networks, tiny data sets, and the scripts as functions."""

import contextlib
import copy
import csv
import gc
import io
import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import kd  # noqa: E402, F401  (must come first: it configures the allocator)
from kd.reports import figures  # noqa: E402
from kd.reports import report as reports  # noqa: E402
from kd.system.errors import Problem  # noqa: E402

# Small enough that a complete script takes a second or two, with BatchNorm, dropout and an incomplete last batch.
TINY = ["--dataset", "synthetic", "--synthetic-images", "196", "--image-size", "32", "--batch-size", "24", "--epochs", "2",
        "--lr", "1e-3", "--no-pretrained", "--device", "cpu"]

PAIR = ["--teacher", "kdwide", "--student", "kdtiny", *TINY]
DATA = Path("runs/synthetic-patient-32")
RUN = DATA / "normal/kdwide-kdtiny/seed0"
TEACHER = DATA / "teacher/kdwide/seed0"


class TinyNet(nn.Module):
    """A network like those of timm, with 2,000 parameters, BatchNorm and dropout."""

    def __init__(self, num_classes=1000, drop_rate=0.1, **_):
        super().__init__()
        self.feature_info = [{"module": "bn"}]
        self.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2), "classifier": "fc"}
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(8 * 16, num_classes)

    def forward(self, images):
        hidden = torch.relu(self.bn(self.conv(images)))
        return self.fc(self.drop(nn.functional.adaptive_avg_pool2d(hidden, 4).flatten(1)))


class WideNet(TinyNet):
    """Another architecture whose classifier has the same name."""

    def __init__(self, num_classes=1000, **options):
        super().__init__(num_classes, **options)
        self.conv, self.bn = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 16, num_classes)


def _register(name, network):
    def entry(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **options):
        return network(**options)
    entry.__name__, entry.__module__ = name, __name__
    timm.models.register_model(entry)


__all__: list[str] = []  # required by timm's registry
_register("kdtiny", TinyNet)
_register("kdwide", WideNet)


def pytest_addoption(parser):
    parser.addoption("--gpu-device", default="cuda", choices=("cuda", "cpu"),
                     help="device of the tests marked gpu; cpu runs those that a CPU can run")


def pytest_collection_modifyitems(items):
    """Run the tests marked gpu last.

    Other tests fork, and a process that has used CUDA should not be forked.
    """
    items.sort(key=_is_gpu_test)


def _is_gpu_test(item):
    return item.get_closest_marker("gpu") is not None


@pytest.fixture
def gpu(request):
    """The device of a test marked gpu. Skips the test if it needs what this device lacks."""
    from kd.system.devices import pick_device
    name = request.config.getoption("--gpu-device")
    needs = [word for mark in request.node.iter_markers("gpu") for word in mark.args]
    if name == "cpu" and needs:
        pytest.skip(f"needs a CUDA GPU for {needs[0]}, but --gpu-device is cpu")
    if name == "cuda" and not torch.cuda.is_available():
        cure = f"for {needs[0]}" if needs else "(with --gpu-device cpu it runs on the CPU)"
        pytest.skip(f"needs a CUDA GPU {cure}")
    return pick_device(name)


def same(first, second):
    """Return whether two nested states are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def weights(folder):
    """Return the weights of a finished run."""
    return torch.load(folder / "model.pt", weights_only=True)["state_dict"]


def write_table(root, rows, header="path,label,patient"):
    """Write an images.csv."""
    (root / "images.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    """Run every test in its own folder, so that it shares runs/ and cache/ with no other test."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # networks this small are no faster on two


@pytest.fixture(scope="session", autouse=True)
def quick_collections():
    """Exclude the objects created by the imports from the garbage collections after each of hundreds of runs."""
    import kd.runs.run  # noqa: F401
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Replace all figures by black images, unless a test is marked `draws`.

    Drawing takes longer than the rest of a tiny run.
    """
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(figures, "pixels", lambda figure: np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def script():
    """Run the main function of a script: script("distill", [...]) -> (exit code, stdout + error line)."""
    def call(name, argv):
        module = __import__(name)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                code = module.main([str(word) for word in argv])
            except Problem as problem:
                return problem.code, out.getvalue() + f"error: {problem}"
        return code, out.getvalue()
    return call


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """prepared([(script, argv), ...]) copies the runs and cache of these commands into the test's folder.

    They are made once per session.
    """
    made = {}

    def put(commands):
        key = repr(commands)
        if key not in made:
            here, made[key] = os.getcwd(), tmp_path_factory.mktemp("prepared")
            os.chdir(made[key])
            for name, argv in commands:
                with contextlib.suppress(Problem), contextlib.redirect_stdout(io.StringIO()):
                    __import__(name).main(list(argv))
            os.chdir(here)
        shutil.copytree(made[key], ".", dirs_exist_ok=True)
    return put


@pytest.fixture
def injected(request):
    """Count the faults that a test of a case injects: injected(n). The default is one."""
    def count(n):
        total = dict(request.node.user_properties).get("injections", 0) + n
        request.node.user_properties[:] = [("injections", total)]
    return count


def pytest_runtest_makereport(item, call):
    """Pass the case numbers of a test to the summary."""
    mark = item.get_closest_marker("case")
    if mark and call.when == "call":
        for number in mark.args:
            item.user_properties.append(("case", number))


def pytest_terminal_summary(terminalreporter):
    """Print what was measured, and which kinds of faults were injected, how often, with failures."""
    counts, failures = {}, 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in report.user_properties:
                if key == "measured":
                    terminalreporter.write_line(f"measured: {value}")
            cases = [value for key, value in report.user_properties if key == "case"]
            made = dict(report.user_properties).get("injections", 1)
            failures += bool(cases) and outcome == "failed"
            for case in cases:
                counts[case] = counts.get(case, 0) + made
    if counts:
        listed = ", ".join(f"{case}: {counts[case]}" for case in sorted(counts))
        terminalreporter.write_line(f"faults: {len(counts)} cases, {sum(counts.values())} injections, {failures} failures "
                                    f"({listed})")


@pytest.fixture
def picture_tree(tmp_path):
    """Write class folders of random grey PNGs: picture_tree(name, {"train/a": 3, ...}) -> folder."""
    def make(name, counts, size=(20, 24), mode="L"):
        random = np.random.default_rng(0)
        for folder, count in counts.items():
            place = tmp_path / name / folder
            place.mkdir(parents=True)
            shape = (*size, 3) if mode == "RGB" else size
            for number in range(count):
                Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(place / f"image{number}.png")
        return tmp_path / name
    return make


@pytest.fixture
def labelled(picture_tree):
    """Sixteen images of two classes and eight patients; the last two patients are the test split."""
    root = picture_tree("hospital", {"x": 16})
    rows = [(f"x/image{k}.png", "ab"[k // 2 % 2], f"p{k // 2}", "test" if k >= 12 else "train") for k in range(16)]
    write_table(root, rows, "path,label,patient,split")
    return root


@pytest.fixture
def clinic(tmp_path, picture_tree):
    """Images of other patients, without a table."""
    root = picture_tree("clinic", {"any/where": 12}, size=(31, 17))
    return root


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    """The folders of a student's and a teacher's run, from which other runs are made without training."""
    import distill
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("templates"))
    distill.main(["--teacher", "kdwide", "--student", "kdtiny", "--mode", "normal", *TINY])
    found = {"student": RUN.resolve(), "teacher": TEACHER.resolve()}
    os.chdir(before)
    return found


@pytest.fixture
def make(templates):
    """make(role, teacher, student, seed, change) writes a run to runs/ as if it had been trained, and returns its folder."""
    def run(role, teacher, student, seed, change=lambda report: None, where=None):
        alone = role in ("alone", "defective-alone")
        report = copy.deepcopy(reports.read(templates["teacher" if alone else "student"]))
        settings = report["settings"]
        settings["seed"] = seed
        if alone:
            settings |= {"model": student, "stop_at_val_accuracy": 0.5 if role != "alone" else None}
            report["student"]["weights_hash"] = f"{student}, {role}, seed {seed}"
        else:
            settings |= {"mode": role, "teacher": teacher, "student": student}
            report["student"]["weights_hash"] = f"{student} <- {teacher}, {role}, seed {seed}"
            kind = {"defective": "defective-alone", "random": "untrained"}.get(role, "alone")
            taught_by = f"{teacher}, {kind}, seed {seed}"
            report["teacher"]["hash"] = taught_by
            for member in report["teacher"]["members"]:
                member["hash"] = taught_by
        folder = Path(where or f"runs/set/{role}/{teacher}-{student}/seed{seed}")
        folder.mkdir(parents=True)
        predict(report, templates["teacher" if alone else "student"], folder)
        change(report)
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "settings.json").write_text(json.dumps(report["settings"]))
        return folder
    return run


def predict(report, template, folder):
    """Write predictions that depend only on the path of a run's folder, and make its report agree with them."""
    chance, right = random.Random(folder.as_posix()), {"predicted": [], "teacher": []}
    with (template / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    classes = report["data"]["classes"]
    for row in rows:
        for key in right:
            if key == "predicted" or row["teacher"]:
                row[key] = row["label"] if chance.random() < 0.6 else chance.choice(classes)
                right[key] += [row[key] == row["label"]] if row["part"] == "test" else []
        row |= {f"logit_{name}": float(name == row["predicted"]) for name in classes}
    with (folder / "predictions.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    report["results"]["best"]["test_accuracy"] = float(np.mean(right["predicted"]))
    if report["teacher"]:
        report["teacher"]["test_accuracy"] = float(np.mean(right["teacher"]))
