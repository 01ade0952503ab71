"""evaluate.py --export: the files predict what model.pt predicts, name nobody, and are complete or not there."""

import builtins
import contextlib
import csv
import dis
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import films
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, TinyNet, _register
from faults import in_child, limit_files
from PIL import Image
from test_privacy import SECRETS, hospital
from torch import nn

from kd import models
from kd.config.layout import RunPaths
from kd.data.images import pixels
from kd.data.images.pixels import Range, Recipe
from kd.reports.predictions import read_predictions
from kd.studies.export import folder, int8, quantised, verify, write
from kd.studies.export import script as scripts
from kd.studies.export.graph import exported
from kd.studies.export.onnx_file import run_onnx, to_onnx
from kd.studies.export.torch_file import run_pt2
from kd.system.errors import Problem, run_main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FLOAT = ("model.onnx", "model.pt2")
FILES = {*FLOAT, "model.int8.onnx", "preprocessing.json", "verification.json", "predict.py", "card.md", "card.json"}


class OddNet(TinyNet):
    """A network with an operator that ONNX does not have."""

    def forward(self, images):
        return super().forward(torch.special.bessel_j0(images))


_register("kdodd", OddNet)


def main(script, argv):
    """Run a script and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert __import__(script).main([str(word) for word in argv]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory, templates):
    """(the folder of a student's run whose temperature is 1.5, what its export printed); both must not be changed."""
    before = os.getcwd()
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(templates["student"].parents[3], root / "runs")
    os.chdir(root)
    run = root / "runs" / templates["student"].relative_to(templates["student"].parents[3])
    change(run, lambda report: report["evidence"]["calibration"].update(temperature=1.5, reason=None, after=report["evidence"]["calibration"]["before"]))
    said = main("evaluate", ["--export", run])
    os.chdir(before)
    return run, said


@pytest.fixture
def run(made, monkeypatch):
    """A copy of the run with its export, whose graph is not converted and timed again."""
    shutil.copytree(made[0].parents[3], "runs")
    shutil.copytree(made[0].parents[4] / "cache", "cache")
    content = (made[0] / "export/model.onnx").read_bytes()
    monkeypatch.setattr(write, "to_onnx", lambda program, network: content)
    monkeypatch.setattr(write, "time_rows", lambda rows, *_: time_nothing(rows))
    return Path("runs") / made[0].relative_to(made[0].parents[3])


def time_nothing(rows):
    for row in rows.values():
        row.latency_1 = row.latency_32 = {1: verify.latencies({"model.onnx": [1.0]})["model.onnx"]}


def change(run, how):
    report = json.loads((run / "report.json").read_text())
    how(report)
    (run / "report.json").write_text(json.dumps(report))


def read(run, name):
    return json.loads((run / "export" / name).read_text())


def run_of(file):
    return run_pt2(file.read_bytes()) if file.suffix == ".pt2" else run_onnx(file.read_bytes(), 1)


def predict_py(export, *words):
    """Run predict.py in a process that can import neither this program nor torch."""
    code = ("import runpy, sys; sys.modules.update(dict.fromkeys(['kd', 'torch', 'timm', 'pydicom', 'scipy', 'onnx']));"
            f"sys.argv[:] = ['predict.py', *{[str(word) for word in words]!r}];"
            f"runpy.run_path({str(Path(export) / 'predict.py')!r}, run_name='__main__')")
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)


def rows_of(file):
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


@pytest.fixture(scope="module")
def names():
    """The names that predict.py defines."""
    found = {"__name__": "predict"}
    exec(compile(scripts.predict_script(), "predict.py", "exec"), found)
    return found


# The files


def test_an_export_has_all_files_and_says_how_they_are_used(made):
    run, said = made
    about = read(run, "preprocessing.json")
    assert {file.name for file in (run / "export").iterdir()} >= FILES
    assert about["input"] == {"name": "images", "type": "uint8", "shape": ["batch", 1, 32, 32]}
    assert about["output"] == {"name": "probabilities", "type": "float32", "shape": ["batch", 7]}
    assert (about["opset"], about["image_size"], about["channels"], about["resize"], about["filter"], about["crop"]) == (
        18, 32, 1, "squash", "bilinear", "none")
    assert about["temperature"] == 1.5 and about["operating_point"] is None and about["classes"][0] == "elbow"
    assert np.allclose(about["mean"], (0.4, 0.5, 0.6)) and np.allclose(about["std"], (0.2, 0.3, 0.2))
    model = onnx.load(run / "export/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [one.version for one in model.opset_import if not one.domain] == [18]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # not a number
    assert "| model.onnx |" in said and "| teacher |" in said and "int8, all layers in 8 bits" in said


@pytest.mark.parametrize("name", [*FLOAT, "model.int8.onnx"])
def test_a_file_predicts_batches_of_any_size_as_the_run_does(made, name):
    run, _ = made
    images = np.stack([pixels.resized(Image.fromarray(films.synthetic.draw(row, 0)), Recipe(32, "squash", 1)) for row in rows_in(run)])
    logits = read_predictions(run).logits.astype(float) / 1.5
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predict = run_of(run / "export" / name)
    found = predict(images)
    bound = 0.05 if "int8" in name else 1e-5
    assert found.dtype == np.float32 and found.shape == (len(images), 7) and np.abs(found - expected).max() < bound
    for size in (1, 2, 7):
        assert np.abs(predict(images[:size]) - found[:size]).max() < 1e-6
    row = next(row for row in read(run, "verification.json")["rows"] if row["file"] == name)
    assert row["largest_difference"] == pytest.approx(np.abs(found - expected).max(), rel=0.05, abs=1e-6)
    assert row["accuracy"] == (found.argmax(1) == read_predictions(run).labels).mean()


def rows_in(run):
    """Return the rows of the synthetic test images, from their paths."""
    index = films.synthetic.read(196, 0)
    row_of = {sample.path: row for row, sample in enumerate(index.samples)}
    return [row_of[path] for path in read_predictions(run).paths]


def test_the_check_reports_every_file_beside_model_and_teacher(made):
    run, _ = made
    result = read(run, "verification.json")
    rows = {row["file"]: row for row in result["rows"]}
    assert list(rows) == ["model.pt", *FLOAT, "model.int8.onnx", "teacher"]
    for name in (*FLOAT, "model.int8.onnx"):
        content = (run / "export" / name).read_bytes()
        assert rows[name]["bytes"] == len(content) and rows[name]["sha256"] == verify.hashlib.sha256(content).hexdigest()
        assert read(run, "preprocessing.json")["files"][name] == {key: rows[name][key] for key in ("bytes", "sha256")}
    report = json.loads((run / "report.json").read_text())
    assert rows["model.pt"]["accuracy"] == report["results"]["best"]["test_accuracy"] == result["reported_test_accuracy"]
    assert rows["teacher"]["accuracy"] == report["teacher"]["test_accuracy"] and rows["teacher"]["largest_difference"] is None
    test = read_predictions(run)
    assert rows["teacher"]["equal_answers"] == (test.teacher == test.logits.argmax(1)).mean()
    for name, row in rows.items():
        for key in ("latency_1", "latency_32"):
            assert set(row[key]) == {str(count) for count in {1, verify.all_threads()}}
            assert all(one["low"] <= one["median"] <= one["high"] for one in row[key].values())
            assert all((one["of_onnx"]["median"] == 1) == (name == "model.onnx") for one in row[key].values())
    gap = result["int8"]["variants"][result["int8"]["kept"]]["minus_float"]
    assert gap["low"] < gap["mean"] < gap["high"] and result["int8"]["margin"] == 0.01
    assert result["images"]["images"] == 28 and result["images"]["patients"] == 7


def test_ratios_of_latencies_are_taken_within_a_turn():
    found = verify.latencies({"model.onnx": [1.0, 2.0, 10.0], "teacher": [3.0, 4.0, 50.0]})
    assert found["teacher"] == {"median": 4.0, "low": 3.5, "high": 27.0, "repeats": 3,
                                "of_onnx": {"median": 3.0, "low": 2.5, "high": 4.0}}
    assert found["model.onnx"]["of_onnx"] == {"median": 1.0, "low": 1.0, "high": 1.0}


# Privacy


@pytest.fixture(scope="module")
def hospital_run(tmp_path_factory):
    """(the exported run of a hospital whose files are full of names, in colour and of two classes; the folder of its images)."""
    before = os.getcwd()
    root = tmp_path_factory.mktemp("DOE_JANE")
    os.chdir(root)
    data = hospital(root, "clinic")
    main("train_teacher", ["--model", "kdtiny", *TINY, "--dataset", "folder", "--data-dir", data, "--channels", "3"])
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    run = run.rename(Path("runs") / "one").resolve()
    main("evaluate", ["--export", run])
    os.chdir(before)
    return run, data


def parts_of(content):
    """Yield the content of a file, and that of the members of a zip file and their names."""
    yield content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            for name in members.namelist():
                yield name.encode() + b"\n" + members.read(name)


def test_no_exported_file_holds_a_name_a_path_or_an_image(hospital_run):
    run, data = hospital_run
    traces = [str(ROOT), str(run.parent.parent), sys.prefix, "site-packages", "stack_trace", "/kd/"]
    traces = [trace.encode() for trace in traces]
    secrets = [secret.lower().encode(code) for secret in SECRETS for code in ("utf-8", "latin-1", "utf-16-le", "utf-32-le")]
    images = [file.read_bytes() for file in data.rglob("*.png")]
    images += [np.asarray(Image.open(file)).tobytes() for file in data.rglob("*.png")]
    images += [pixels.square(file.read_bytes(), Recipe(32, "squash", 3))[0].tobytes() for file in data.rglob("*.png")]
    files = sorted(path for path in (run / "export").rglob("*") if path.is_file())
    assert {file.name for file in files} >= FILES and len(images) > 100
    for file in files:
        for part in parts_of(file.read_bytes()):
            assert not [trace for trace in traces if trace in part], file
            assert not [secret for secret in secrets if secret in part.lower()], file
            assert not any(image in part for image in images), file


# predict.py


def test_predict_py_defines_every_name_that_it_uses(names):
    def unknown(code):
        for one in dis.get_instructions(code):
            if one.opname in ("LOAD_GLOBAL", "LOAD_NAME") and one.argval not in names and not hasattr(builtins, one.argval):
                yield one.argval
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from unknown(constant)
    local = {"__module__", "__qualname__", "__doc__", "__annotations__", "__file__", "error"}
    assert set(unknown(compile(scripts.predict_script(), "predict.py", "exec"))) - local - class_names(names) == set()


def class_names(names):
    """Return the names that the bodies of classes define, which instructions inside them load."""
    return {key for one in names.values() if isinstance(one, type) for key in vars(one)}


def test_modules_that_define_the_same_name_cannot_become_one_script(monkeypatch):
    monkeypatch.setattr(scripts, "MODULES", (*scripts.MODULES, "kd.data.images.decoded"))
    with pytest.raises(ValueError, match="both define INTEGER"):
        scripts.predict_script()
    monkeypatch.setattr(scripts, "MODULES", ("kd.data.images.pixels",))
    with pytest.raises(ValueError, match="imports FLOAT of kd.data.images.decoded, which is not in MODULES"):
        scripts.predict_script()


def mixed_folder(root):
    """Write images of many kinds, and some that cannot be read, and return the folder."""
    (root / "deep/er").mkdir(parents=True)
    grey = films.film(3)
    colour = np.stack([grey, np.flipud(grey), 255 - grey], 2)
    for kind in films.FORMATS:
        films.write(kind, root / "deep" / kind, grey)
    Image.fromarray(colour).save(root / "colour.png")
    Image.fromarray(colour).convert("P").save(root / "palette.png")
    Image.fromarray(colour).convert("P").save(root / "palette.gif", transparency=3)
    Image.fromarray(np.dstack([colour, np.fliplr(grey)])).save(root / "alpha.png")
    Image.fromarray(np.dstack([grey, np.fliplr(grey)])).save(root / "grey-alpha.png")
    Image.fromarray(colour).convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(grey > 99).save(root / "one bit, with spaces.png")
    Image.fromarray(colour).save(root / "lossless.webp", lossless=True)
    Image.fromarray(grey[:, :70]).resize((700, 900)).save(root / "large.JPG")
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(colour[:, :90]).save(root / f"deep/er/turned{number}.jpeg", exif=exif)
    return root


def readable(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("size, resize, channels, crop", [
    (32, "squash", 1, "none"), (48, "squash", 3, "none"), (40, "pad", 1, "none"), (33, "pad", 3, "fundus"), (24, "squash", 3, "fundus")])
def test_predict_py_prepares_every_kind_of_image_as_training_does(tmp_path, names, size, resize, channels, crop):
    ranges = {"integer": ("Range", 0.0, 4095.0), "float": ("Range", -3.0, 4096.5)}
    ours = Recipe(size, resize, channels, crop, {kind: Range(*ends[1:], "measured") for kind, ends in ranges.items()})
    about = {"image_size": size, "resize": resize, "channels": channels, "crop": crop,
             "ranges": {kind: [*ends[1:], "measured"] for kind, ends in ranges.items()}}
    theirs = names["recipe_of"](about, None)
    files = readable(mixed_folder(tmp_path / "mixed"))
    assert len(files) > 30
    for file in files:
        expected, flags = pixels.square(file.read_bytes(), ours)
        found, other = names["square"](file.read_bytes(), theirs)
        assert np.array_equal(found, expected) and found.dtype == np.uint8 and flags == other, file


def evaluated(run, root, *words):
    """Run evaluate.py on a folder; return (exit code, rows of predictions.csv, rows of unreadable.csv)."""
    before = set(run.glob("evaluation-*"))
    with contextlib.redirect_stdout(io.StringIO()):
        code = run_main(lambda: __import__("evaluate").main([str(run), "--dataset", "folder", "--data-dir", str(root), *words]))
    [where] = set(run.glob("evaluation-*")) - before
    broken = rows_of(where / "unreadable.csv") if (where / "unreadable.csv").exists() else []
    return code, rows_of(where / "predictions.csv"), broken


def test_predict_py_gives_the_answers_of_evaluate_py(tmp_path, run):
    root = mixed_folder(tmp_path / "clinic")
    (root / "broken.png").write_bytes(b"no image")
    (root / "deep/cut.jpg").write_bytes((root / "cmyk.jpg").read_bytes()[:300])
    (root / "IM0001").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 200)
    (root / "notes.txt").write_text("no image")
    code, rows, broken = evaluated(run, root)
    done = predict_py(run / "export", root, "--out", "ours.csv")
    assert code == done.returncode == 2, done.stderr
    ours = rows_of("ours.csv")
    assert [row["path"] for row in ours] == [row["path"] for row in rows] and len(ours) > 30
    assert [row["predicted"] for row in ours] == [row["predicted"] for row in rows]
    columns = [name for name in rows[0] if name.startswith("probability_")]
    assert list(ours[0]) == ["path", "predicted", *columns]
    gaps = [abs(float(own[name]) - float(other[name])) for own, other in zip(ours, rows) for name in columns]
    assert max(gaps) < 1e-5
    lost = rows_of("unreadable.csv")
    assert [row["path"] for row in lost] == sorted(row["path"] for row in broken) == ["IM0001", "broken.png", "deep/cut.jpg"]
    assert "a DICOM file, which predict.py does not read" in lost[0]["reason"] and lost[1] == broken[1]
    assert all(row["path"] in done.stderr for row in lost) and "Traceback" not in done.stderr


def test_predict_py_measures_a_range_over_the_folder_and_passes_over_misfits_as_evaluate_py_does(tmp_path, run):
    content = torch.load(run / "model.pt", weights_only=True)
    about = read(run, "preprocessing.json")
    about["ranges"] = content["input"]["ranges"] = {"integer": [0.0, 4095.0, "measured over the train split"]}
    torch.save(content, run / "model.pt")
    (run / "export/preprocessing.json").write_text(json.dumps(about))
    root = tmp_path / "clinic"
    root.mkdir()
    for number in range(4):
        films.write("png8", root / str(number), films.film(number))
        films.write("float", root / f"float{number}", films.film(number))  # no such image was in training
    Image.fromarray(films.deep(films.film(5), 16)).save(root / "odd.png")
    code, rows, broken = evaluated(run, root)
    done = predict_py(run / "export", root, "--out", "ours.csv")
    ours = rows_of("ours.csv")
    assert code == done.returncode == 2 and [row["path"] for row in broken] == [row["path"] for row in rows_of("unreadable.csv")] == ["odd.png"]
    Path("unreadable.csv").unlink()
    assert [row["path"] for row in ours] == [row["path"] for row in rows] and len(rows) == 8
    for own, other in zip(ours, rows):
        assert all(abs(float(own[name]) - float(other[name])) < 1e-5 for name in own if name.startswith("probability_"))
    code, rows, _ = evaluated(run, root, "--bits", "16")
    done = predict_py(run / "export", root, "--out", "bits.csv", "--bits", "16")
    assert code == done.returncode == 0 and len(rows_of("bits.csv")) == len(rows) == 9
    for number in range(4):
        (root / f"float{number}.tif").unlink()
        Image.fromarray(films.deep(films.film(number), 16)).save(root / f"{number}.png")
    done = predict_py(run / "export", root, "--out", "none.csv")
    assert done.returncode == 2 and "Many images have values outside the range" in done.stderr and not Path("none.csv").exists()


def test_predict_py_applies_the_operating_point(hospital_run, tmp_path):
    run, data = hospital_run
    about, report = read(run, "preprocessing.json"), json.loads((run / "report.json").read_text())
    point = about["operating_point"]
    assert {key: point[key] for key in ("rule", "threshold", "reason")} == report["evidence"]["operating_point"]
    assert point["positive"] == report["evidence"]["positive"] == "b" and point["classes"] == [1]
    done = predict_py(run / "export", data, "--out", "found.csv")
    rows = rows_of("found.csv")
    assert done.returncode == 0, done.stderr
    assert len(rows) == 49 and {row["positive"] for row in rows} <= {"0", "1"}
    assert all((float(row["probability_b"]) >= point["threshold"] - 1e-5) >= (row["positive"] == "1") for row in rows)
    assert read(run, "verification.json")["images"]["decoded_again_by_script"] == json.loads(
        (run / "report.json").read_text())["data"]["parts"]["test"]


@pytest.mark.parametrize("fault, words", [
    ("no folder", "is not a folder"), ("empty", "it contains none"), ("broken", "can be read: 1.png (not an image of a known format)"),
    ("exists", "exists already"), ("changed", "its SHA-256 is not that in preprocessing.json"), ("no model", "model.int8.onnx' cannot be read"),
    ("no about", "preprocessing.json' cannot be read"), ("unwritable", "nowhere")])
def test_predict_py_refuses_in_one_line(tmp_path, made, names, capsys, fault, words):
    export = tmp_path / "export"
    shutil.copytree(made[0] / "export", export)
    root, out = tmp_path / "images", tmp_path / "out.csv"
    if fault != "no folder":
        root.mkdir()
    if fault not in ("no folder", "empty"):
        (root / "1.png").write_bytes(b"no image")
    if fault not in ("no folder", "empty", "broken"):
        films.write("png8", root / "1", films.film(1))
    if fault == "exists":
        out.write_text("mine")
    if fault == "changed":
        (export / "model.int8.onnx").write_bytes((export / "model.onnx").read_bytes())
    if fault == "no model":
        (export / "model.int8.onnx").unlink()
    if fault == "no about":
        (export / "preprocessing.json").unlink()
    if fault == "unwritable":
        out = tmp_path / "nowhere/out.csv"
    assert names["main"]([str(root), "--out", str(out), "--model", "int8"], export) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not out.exists() or out.read_text() == "mine"


# Nothing is exported that was not verified, and nothing is lost


def exports(run, *words):
    """Run evaluate.py --export; return (exit code, the last line of stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_main(lambda: __import__("evaluate").main(["--export", str(run), *map(str, words)]))
    lines = err.getvalue().splitlines()
    assert len(lines) <= 1 and "Traceback" not in err.getvalue()
    return code, lines[0] if lines else out.getvalue()


def content_of(run):
    return {path.name: path.read_bytes() for path in (run / "export").iterdir()}


def leftovers(run):
    return [path.name for path in run.iterdir() if path.name.startswith("export") and path.name != "export"]


@pytest.mark.parametrize("name, wrong", [("model.onnx", 1e-4), ("model.pt2", 2e-5), ("model.pt2", float("nan"))])
def test_a_file_that_differs_from_the_model_is_not_exported(run, monkeypatch, name, wrong):
    """An earlier export stays as it is."""
    before = content_of(run)
    real = write.run_onnx if name == "model.onnx" else write.run_pt2

    def differing(*words):
        own = real(*words)
        return lambda images: own(images) + wrong * (np.arange(7) == 3)
    monkeypatch.setattr(write, real.__name__, differing)
    code, error = exports(run)
    assert code == 1 and error.startswith(f"error: The exported {name} differs from model.pt by ") and "Nothing was exported." in error
    assert content_of(run) == before and not leftovers(run)


def test_a_script_that_decodes_otherwise_is_not_exported(hospital_run, monkeypatch):
    run, _ = hospital_run
    monkeypatch.setattr(write, "to_onnx", lambda *_: (run / "export/model.onnx").read_bytes())
    monkeypatch.setattr(write, "time_rows", lambda rows, *_: time_nothing(rows))
    text = scripts.predict_script().replace("Image.Resampling.BILINEAR", "Image.Resampling.NEAREST")
    monkeypatch.setattr(write, "predict_script", lambda: text)
    shutil.copytree(run, "copy")
    code, error = exports("copy")
    assert code == 1 and "predict.py prepares a test image in another way than this program. Nothing was exported." in error


def test_an_export_of_the_same_weights_is_replaced_and_any_other_is_refused(run):
    first = content_of(run)
    (run / "export/model.onnx").write_bytes(b"damaged")
    code, said = exports(run)
    assert code == 0 and not leftovers(run)
    again = content_of(run)
    changing = {"verification.json", "card.json", "card.md"}  # the latencies
    assert {name for name in first if first[name] != again[name]} <= changing
    (run / "export/mine.txt").write_text("mine")
    code, error = exports(run)
    assert code == 2 and "contains files that are not of the export: mine.txt. Move it or delete it" in error
    (run / "export/mine.txt").unlink()
    about = read(run, "preprocessing.json")
    about["network"]["weights"] = "0123456789abcdef"
    (run / "export/preprocessing.json").write_text(json.dumps(about))
    code, error = exports(run)
    assert code == 2 and "is the export of other weights (0123456789abcdef) than those of the run (" in error
    (run / "export/preprocessing.json").unlink()
    code, error = exports(run)
    assert code == 2 and "exists already and is no export of this program" in error
    assert (run / "export/model.onnx").read_bytes() == first["model.onnx"] and not leftovers(run)


def test_an_export_that_was_killed_leaves_the_earlier_one(run):
    (run / "export").rename(run / "export.previous")
    (run / "export.unfinished").mkdir()
    (run / "export.unfinished/model.onnx").write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt), folder.new_export(RunPaths(run), read_weights(run)) as new:
        assert not list(new.iterdir()) and (run / "export/model.onnx").is_file()
        raise KeyboardInterrupt
    assert not leftovers(run) and {path.name for path in (run / "export").iterdir()} >= FILES


def read_weights(run):
    return json.loads((run / "report.json").read_text())["student"]["weights_hash"]


def test_a_full_disk_is_one_line(run):
    shutil.rmtree(run / "export")

    def on_a_full_disk():
        limit_files(3000)
        return __import__("evaluate").main(["--export", str(run), "--cache-dir", "cache"])
    full = in_child(on_a_full_disk)
    assert full.code == 74 and "model.onnx' cannot be written (disk full). Free space" in full.err and full.err.count("\n") == 1
    assert not (run / "export").exists() and not leftovers(run)


@pytest.mark.parametrize("fault, code, words", [
    ("unfinished", 4, "is not finished: it has no report"), ("damaged", 4, "model.pt"), ("other model", 4, "does not belong to its report"),
    ("read-only", 74, "cannot be written (Read-only file system)"), ("dataset", 2, "--dataset folder cannot be combined with --export"),
    ("device", 2, "--device cuda cannot be combined with --export"), ("package", 2, "--export needs the package onnxscript, which is missing."
                                                                          " Run: python -m pip install onnx onnxscript onnxruntime")])
def test_what_cannot_be_exported_is_refused_in_one_line(run, monkeypatch, fault, code, words):
    argv = {"dataset": ["--dataset", "folder", "--data-dir", "."], "device": ["--device", "cuda"]}.get(fault, [])
    if fault == "unfinished":
        (run / "report.json").unlink()
    if fault == "damaged":
        (run / "model.pt").write_bytes((run / "model.pt").read_bytes()[:5000])
    if fault == "other model":
        content = torch.load(run / "model.pt", weights_only=True)
        content["state_dict"]["fc.bias"] += 1
        torch.save(content, run / "model.pt")
    if fault == "read-only":
        real = os.open
        monkeypatch.setattr(os, "open", lambda path, *more: real(path, *more) if not str(path).endswith(".lock") else unwritable(path))
    if fault == "package":
        monkeypatch.setitem(sys.modules, "onnxscript", None)
    found, error = exports(run, *argv)
    assert found == code and error.startswith("error: ") and words in error


def unwritable(path):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_a_run_whose_images_are_gone_says_what_they_are_needed_for(hospital_run, tmp_path, monkeypatch):
    run, data = hospital_run
    monkeypatch.setattr(write, "to_onnx", lambda *_: (run / "export/model.onnx").read_bytes())
    monkeypatch.setattr(write, "time_rows", lambda rows, *_: time_nothing(rows))
    shutil.copytree(run, "copy")
    needs = "The export needs the images of the run: it verifies every file on the test split."
    moved = data.rename(tmp_path / "moved")
    try:
        code, error = exports("copy")
        assert code == 2 and "no such folder" in error and needs in error
        first = moved / next(path for path in read_predictions(run).paths if not path.endswith(("_0.png", "_8.png")))  # not copies
        first.rename(tmp_path / "kept")
        Image.new("L", (20, 20)).save(first)
        code, error = exports("copy", "--data-dir", moved)
        assert code == 2 and "cannot be found, or their content has changed" in error and needs in error
        (tmp_path / "kept").rename(first)
        assert exports("copy", "--data-dir", moved)[0] == 0
    finally:
        moved.rename(data)


def test_an_operator_that_cannot_be_exported_is_named():
    network = models.build("kdodd", ("a", "b"))
    with pytest.raises(Problem, match=r"^Network 'kdodd' cannot be exported .its operator (aten|prims)[.]\w*bessel_j0[.\w]* cannot be exported.. Use model.pt"):
        to_onnx(exported(network, 1.0, (1, 32, 32)), network)


# The graph, and 8 bits


def small():
    return models.build("kdtiny", ("a", "b", "c")), (3, 32, 32)


def test_the_graph_is_the_plain_network_of_timm():
    """What replaces layers on a CPU would be a product of matrices in the graph, and a branch for gradients."""
    network, shape = small()
    network.module.conv = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 8), nn.Upsample(scale_factor=16))
    program = exported(network, 1.0, shape)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len([call for call in calls if call.startswith("aten.conv2d")]) == 2 and len([call for call in calls if "linear" in call]) == 1


def test_colour_mean_deviation_and_temperature_are_in_the_graph():
    network, shape = small()
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    content = to_onnx(exported(network, 0.3, shape), network)
    with torch.inference_mode():
        logits = network.module.eval()((torch.from_numpy(images) / 255 - network.mean) / network.std)
    assert np.abs(run_onnx(content, 1)(images) - (logits / 0.3).softmax(1).numpy()).max() < 1e-6


@pytest.mark.parametrize("has_vnni, highest", [(True, 127), (False, 64)])
def test_weights_have_seven_bits_on_processors_without_vnni(made, monkeypatch, has_vnni, highest):
    monkeypatch.setattr(quantised.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx_vnni": has_vnni})
    model = quantised.prepared((made[0] / "export/model.onnx").read_bytes())
    images = np.random.default_rng(0).integers(0, 256, (16, 1, 32, 32), dtype=np.uint8)
    for layers in ((), quantised.first_and_last(model)):
        own = onnx.load_from_string(quantised.quantised(model, images, layers))
        weights = [onnx.numpy_helper.to_array(one) for one in own.graph.initializer if one.data_type == onnx.TensorProto.INT8]
        weights = [one for one in weights if one.ndim > 1]
        assert len(weights) == (0 if layers else 2)  # both layers of this network are the first or the last
        assert all(highest - 1 <= np.abs(one.astype(int)).max() <= highest for one in weights)
        kinds = [node.op_type for node in own.graph.node]
        if not layers:  # the image is normalised in float
            assert kinds[0] == "Cast" and kinds.index("QuantizeLinear") > kinds.index("Add") > kinds.index("Mul")
        softmax = next(node for node in own.graph.node if node.op_type == "Softmax")
        assert softmax.output[0] == "probabilities"


def test_the_first_and_the_last_layer_stay_in_float_where_that_is_better_on_validation(run, monkeypatch):
    """The tool here ruins everything that it quantises, so that only the float layers of this small network are right."""
    real = int8.quantised
    asked = []

    def ruined(model, images, layers):
        asked.append(layers)
        if layers:
            return real(model, images, layers)
        broken = onnx.load_from_string(real(model, images, layers))
        for one in broken.graph.initializer:
            if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1:
                one.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(one.dims), -9, np.int8), one.name))
        return broken.SerializeToString()
    monkeypatch.setattr(int8, "quantised", ruined)
    code, said = exports(run, "--margin", "0")
    result = read(run, "verification.json")["int8"]
    assert code == 0 and asked[0] == () and len(asked[1]) == 2 and result["margin"] == 0
    worse, better = result["variants"]
    assert result["kept"] == int(better["validation"]["accuracy"] >= worse["validation"]["accuracy"])
    kept = result["variants"][result["kept"]]
    assert verify.hashlib.sha256((run / "export/model.int8.onnx").read_bytes()).hexdigest() == kept["sha256"]
    assert worse["float_layers"] == [] and len(better["float_layers"]) == 2
    assert "Float in the first and last layer gives back" in said and "chosen on the validation split" in said


def test_a_network_that_cannot_be_quantised_is_exported_in_float(run, monkeypatch):
    def fail(model, images, layers):
        raise RuntimeError("no such thing\nfor programmers")
    monkeypatch.setattr(int8, "quantised", fail)
    code, said = exports(run)
    assert code == 0 and "No model.int8.onnx was written: onnxruntime cannot quantise it: no such thing." in said
    assert not (run / "export/model.int8.onnx").exists() and read(run, "verification.json")["int8"]["kept"] is None
    films.write("png8", Path("1").absolute(), films.film(1))
    done = predict_py(run / "export", ".", "--model", "int8")
    assert done.returncode == 2 and "no model.int8.onnx; verification.json says why" in done.stderr


def test_predict_py_says_what_is_wrong_before_it_predicts(tmp_path, names):
    """A folder that is missing, a file of values that are missing, and a model that was not exported."""
    (tmp_path / "images").mkdir()
    Image.new("L", (40, 40), 90).save(tmp_path / "images/a.png")
    (tmp_path / "preprocessing.json").write_text("{}")
    asked = [str(tmp_path / "images"), "--out", str(tmp_path / "none/p.csv")]
    for content, words in (("{}", "it has no ranges"), ("[]", "cannot be read"), (None, "Make its folder")):
        if content is None:
            content = json.dumps(dict.fromkeys(names["_NEEDED"], {}))
        (tmp_path / "preprocessing.json").write_text(content)
        with pytest.raises(names["Problem"], match=words):
            names["predict_folder"](names["options_of"](asked), tmp_path)
    with pytest.raises(names["Problem"], match="no model.int8.onnx.*Remove --model int8"):
        names["run_of"](tmp_path, {"files": {}}, "int8")


def test_an_image_on_the_threshold_is_positive_in_spite_of_rounding(names):
    answers = names["Answers"](probabilities={"a.png": np.float32([0.4818875, 0.5181125]), "b.png": np.float32([0.49, 0.51])})
    point = {"threshold": 0.5181124918671285, "classes": [1]}
    _, rows = names["prediction_rows"](answers, {"classes": ["no", "yes"], "operating_point": point})
    assert [row[2] for row in rows] == ["1", "0"]
