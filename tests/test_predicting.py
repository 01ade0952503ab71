"""evaluate.py RUN on any folder of new images: nested trees, broken files, and the probabilities in predictions.csv."""

import csv
import importlib.util
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import films
import numpy as np
import pytest
import torch
from conftest import DATA, TINY, write_table
from PIL import Image
from scipy.special import softmax

from kd.data.files.find import find_images
from kd.data.images import pixels
from kd.data.index import Index, Sample
from kd.data.readers import folder
from kd.reports import report as reports
from kd.reports.predictions import predictions_csv, read_predictions
from kd.system.errors import Problem

CLASSES = ("healthy", "ill")  # of the networks in tests that only read a tree
SYNTHETIC = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")


def image(path, size=(24, 20)):
    """Write an image whose content depends on its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = np.frombuffer(os.path.relpath(path).encode(), np.uint8)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)).save(path)


def tree(root, *paths):
    for path in paths:
        image(root / path)
    return root


@pytest.fixture
def run(templates):
    """The folder of a finished run on the synthetic set, whose temperature is 1.5."""
    shutil.copytree(templates["teacher"], "runs/one")
    change_calibration(Path("runs/one"), 1.5)
    return Path("runs/one")


def change_calibration(folder, temperature):
    report = json.loads((folder / "report.json").read_text())
    calibration = report["evidence"]["calibration"]
    calibration |= {"temperature": temperature, "after": temperature and calibration["before"],
                    "reason": None if temperature else "all are right"}
    (folder / "report.json").write_text(json.dumps(report))


@pytest.fixture
def evaluated(script, run):
    """evaluated(folder, ...) -> (exit code, output, evaluation.json, rows of predictions.csv, {path: reason} of unreadable.csv)."""
    def call(root, *words):
        before = set(run.glob("evaluation-*"))
        code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", root, "--device", "cpu", *words])
        found = set(run.glob("evaluation-*")) - before
        if not found:
            return code, out, None, [], {}
        [where] = found
        result = json.loads((where / "evaluation.json").read_text())
        broken = read_csv(where / "unreadable.csv") if (where / "unreadable.csv").is_file() else []
        return code, out, result, read_csv(where / "predictions.csv"), {row["path"]: row["reason"] for row in broken}
    return call


def read_csv(file):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


# Trees


@pytest.mark.parametrize("paths", [
    ("1.png", "2.png"), ("2024/05/17/p1/s1/1.png", "2024/05/18/p1/s2/1.png"), ("only/1.png",),
    ("train/1.png", "test/2.png"), ("train/x/1.png", "test/y/1.png", "old/1.png"), ("train/x/1.png", "training/x/1.png", "1.png"),
    ("p1/train/1.png", "p2/test/1.png"), ("p1/images/1.png", "p1/masks/1.png"), ("p1/1.png", "p1/1_mask.png"),
    ("01/1.png", "1/1.png"), ("P1/1.png", "p1/1.png"), ("h1/healthy/1.png", "h2/ill/1.png"), ("train/healthy/1.png", "old/1.png")])
def test_a_tree_whose_folders_are_no_classes_is_read_without_labels(tmp_path, paths):
    index = folder.read(str(tree(tmp_path / "clinic", *paths)), CLASSES)
    assert {sample.path for sample in index.samples} == set(paths) and index.classes == CLASSES
    assert {sample.label for sample in index.samples} == {-1} and not index.lost
    images = f"All {len(paths)} images are" if len(paths) > 1 else "The image is"
    assert index.notes[0].startswith(f"{images} unlabelled: no folder in {tmp_path / 'clinic'} is a class of the network")
    assert any("like classes" in text for text in index.notes) == any("healthy" in path for path in paths)
    assert any("call masks" in text for text in index.notes) == any("mask" in path for path in paths)


@pytest.mark.parametrize("paths, labels", [
    (("healthy/1.png", "ill/a/b/2.png"), [0, 1]), (("ill/1.png",), [1]), (("ill/1.png", "2.png"), [-1, 1]),
    (("test/healthy/1.png", "training/ill/1.png", "train/ill/2.png", "train/3.png"), [0, -1, 1, 1]),
    (("healthy/test/1.png", "ill/train/1.png"), [0, 1])])
def test_a_tree_of_classes_is_labelled_and_says_so(tmp_path, paths, labels):
    index = folder.read(str(tree(tmp_path / "clinic", *paths)), CLASSES)
    assert [sample.label for sample in index.samples] == labels
    assert index.notes[0].startswith(f"Labels are taken from the class folders in {tmp_path / 'clinic'}: ")
    assert ("1 image outside of them" in index.notes[0]) == (-1 in labels)


@pytest.mark.parametrize("paths, words", [
    (("healthy/1.png", "test/1.png"), r"Folder test in .* \(1 image\) is unknown to the network: its classes are healthy, ill\."),
    (("train/healthy/1.png", "train/p7/1.png"), r"Folder p7 in .* is unknown to the network"),
    (("healthy/1.png", "Ill/1.png"), r"differ only in case, .*: 'Ill' \(1 image\) = 'ill' \(of the network\)"),
    (("Healthy/1.png",), r"'Healthy' \(1 image\) = 'healthy' \(of the network\)"),
    (("healthy/1.png", "healthy/masks/1.png"), "the names call masks or annotations")])
def test_labels_that_may_be_wrong_are_refused(tmp_path, paths, words):
    root = tree(tmp_path / "clinic", *paths)
    with pytest.raises(Problem, match=words):
        folder.read(str(root), CLASSES)
    (root / "images.csv").write_text("path\n" + "".join(f"{path}\n" for path in paths))  # the cure for images without labels
    index = folder.read(str(root), CLASSES)
    assert [sample.label for sample in index.samples] == [-1] * len(paths)
    assert index.notes[-1] == f"0 of {len(paths)} images have a label in images.csv."


def test_a_folder_in_two_classes_is_refused_and_a_broken_link_is_listed(tmp_path):
    root = tree(tmp_path / "clinic", "healthy/1.png", "x/1.png")
    (root / "ill").symlink_to(root / "none")
    (root / "x").rename(tmp_path / "x")
    index = folder.read(str(root), CLASSES)
    assert index.lost == {"ill": "a link that leads to nothing that can be reached"} and len(index.samples) == 1
    (root / "ill").unlink()
    (root / "ill").symlink_to(root / "healthy")
    with pytest.raises(Problem, match="are the same by links: ill = healthy"):
        folder.read(str(root), CLASSES)


def test_a_clinic_of_many_kinds_is_predicted(tmp_path, evaluated):
    root = tree(tmp_path / "clinic", "2024/a/b/c/d/1.png", "train/p1/2.jpg", "test/3.tif", "p3/4.BMP", "p3/masks/4.png", ".hidden/5.png",
                "p3/._4.png")
    names = {"2024/a/b/c/d/1.png", "train/p1/2.jpg", "test/3.tif", "p3/4.BMP", "p3/masks/4.png", "link/far.png"}
    image(tmp_path / "elsewhere/far.png")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "p3/letter.pdf").write_bytes(b"%PDF")
    if importlib.util.find_spec("pydicom"):
        from dicom_files import write_dicom
        write_dicom(root / "p4/1.2.840.7", np.arange(400, dtype=np.uint8).reshape(20, 20), PatientID="P4")
        names.add("p4/1.2.840.7")
    shutil.copytree("runs/one", root / "runs/one")  # whose figures are no images of patients
    code, out, result, rows, broken = evaluated(root)
    assert code == 0 and not broken and {row["path"] for row in rows} == names and {row["label"] for row in rows} == {""}
    assert "note: 2 images are left out, in folders that are runs of this program: runs/one." in out
    assert result["data"]["unlabelled"] == len(names) and result["reason"] == "no image has a label"
    assert result["data"]["unreadable"] == 0 and result["data"]["unreadable_file"] is None and "unreadable" not in out


def test_a_patient_of_several_sites_does_not_stop_a_prediction(tmp_path):
    root = tree(tmp_path / "clinic", "1.png", "2.png", "3.png")
    write_table(root, [("1.png", "7", "NORTH"), ("2.png", "7", "SOUTH"), ("3.png", "7", "")], "path,patient,site")
    index = folder.read(str(root), CLASSES)
    assert [sample.patient for sample in index.samples] == ["NORTH::7", "SOUTH::7", "7"]


# Files that cannot be read


def bomb():
    """A PNG of 60,000 x 60,000 pixels in 100 bytes."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content


def broken_files(root):
    """Add a file of each kind that cannot be read, and return {path: words of its reason}."""
    image(root / "p1/whole.jpg", (240, 200))
    cut = (root / "p1/whole.jpg").read_bytes()
    contents = {"p1/empty.png": b"", "p1/cut.jpg": cut[:len(cut) // 2], "p2/text.png": b"<html>404</html>", "p2/bomb.png": bomb(),
                "p2/half.dcm": bytes(128) + b"DICM" + bytes(20), "p2/named.dcm": b"hello" * 40, "p2/empty.dcm": b""}
    for path, content in contents.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)
    os.mkfifo(root / "p2/pipe.png")
    (root / "p2/gone.png").symlink_to("nowhere")
    (root / "p3").symlink_to("not-mounted")
    return {"p1/empty.png": "empty", "p1/cut.jpg": "image file is truncated", "p2/text.png": "not an image of a known format", "p2/bomb.png": "pixels",
            "p2/half.dcm": "", "p2/named.dcm": "not a DICOM file", "p2/empty.dcm": "empty", "p2/pipe.png": "not a regular file",
            "p2/gone.png": "No such file", "p3": "a link that leads to nothing"}


def test_broken_files_are_listed_and_all_others_predicted(tmp_path, evaluated, run):
    root = tree(tmp_path / "clinic", *(f"p{k}/{k}.png" for k in range(5)))
    shutil.rmtree(root / "p3")
    image(root / "p0/deep/3.png")
    expected = broken_files(root)
    code, out, result, rows, broken = evaluated(root)
    assert {row["path"] for row in rows} == {"p0/0.png", "p0/deep/3.png", "p1/1.png", "p1/whole.jpg", "p2/2.png", "p4/4.png"}
    assert broken.keys() == expected.keys() and all(words in broken[path] for path, words in expected.items()), broken
    assert result["data"]["unreadable"] == 10 and result["data"]["unreadable_file"] == "unreadable.csv"
    assert result["data"]["images"] == 6 and sum(result["predicted"].values()) == 6
    *_, unreadable, written, error = out.splitlines()
    assert unreadable.startswith("unreadable: 10 of 16: ") and "p1/empty.png (empty)" in unreadable and unreadable.endswith("(10 in all)")
    assert written.startswith("written: predictions.csv, unreadable.csv and evaluation.json in 'runs/one/evaluation-clinic-")
    assert code == 2 and error.startswith(f"error: 10 of 16 images in '{root}' cannot be read and have no prediction; all others have")
    assert str(tmp_path) not in "".join(broken.values())


def test_labelled_images_with_a_broken_one_have_metrics(tmp_path, evaluated):
    root = tree(tmp_path / "clinic", *(f"{name}/{k}.png" for name in ("hand", "wrist") for k in range(3)))
    (root / "hand/1.png").write_bytes(b"")
    code, out, result, rows, broken = evaluated(root)
    assert code == 2 and broken == {"hand/1.png": "empty"} and result["data"]["unlabelled"] == 0
    right = [row["label"] == row["predicted"] for row in rows]
    assert result["accuracy"] == pytest.approx(np.mean(right)) and sum(map(sum, result["confusion_matrix"])) == len(rows) == 5
    assert "1 of 6 images in" in out and "cannot be read and has no prediction" in out


def test_nothing_readable_is_an_error(tmp_path, evaluated):
    root = tmp_path / "clinic"
    for k in range(3):
        (root / f"p{k}").mkdir(parents=True)
        (root / f"p{k}/1.png").write_bytes(b"no image")
    code, out, result, *_ = evaluated(root)
    assert code == 2 and result is None
    assert out.splitlines()[-1].startswith(f"error: None of 3 images in '{root}' can be read: p0/1.png (not an image of a known format)")
    for file in root.rglob("*.png"):
        file.rename(file.with_suffix(".dcm"))
    code, out, result, *_ = evaluated(root)
    assert code == 2 and "contains no images" in out and "Nothing in it can be read: p0/1.dcm (not a DICOM file), p1/1.dcm" in out


def test_folders_and_files_without_permission_are_listed(tmp_path, evaluated, monkeypatch):
    root = tree(tmp_path / "clinic", "a/1.png", "closed/1.png", "b/2.png")
    (root / "b/film").write_bytes(b"may be DICOM")
    listed, opened, read = os.scandir, open, Path.read_bytes

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    def refuse(file, *args, **options):
        if str(file).endswith("film"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *args, **options)

    def read_bytes(file):
        if file.name == "2.png":
            raise PermissionError(13, "Permission denied", str(file))
        return read(file)
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr("kd.data.files.find.open", refuse, raising=False)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(Problem, match=r"Folders in .* cannot be read: closed \(Permission denied\)"):
        find_images(root)  # training stops
    code, out, result, rows, broken = evaluated(root)
    assert code == 2 and [row["path"] for row in rows] == ["a/1.png"]
    assert broken == {"closed": "a folder that cannot be read: Permission denied", "b/film": "Permission denied",
                      "b/2.png": "Permission denied"}


def test_files_that_vanish_while_they_are_read_are_listed(tmp_path, evaluated, monkeypatch):
    root = tree(tmp_path / "clinic", *(f"{k}.png" for k in range(4)))
    stamps, read = "kd.data.store._stamps", pixels.file_bytes
    from kd.data import store
    own = store._stamps

    def after_listing(index):
        (root / "1.png").unlink()
        return own(index)

    def before_reading(file):
        (root / "2.png").unlink(missing_ok=True)
        return read(file)
    monkeypatch.setattr(stamps, after_listing)
    monkeypatch.setattr("kd.data.store.file_bytes", before_reading)
    code, out, result, rows, broken = evaluated(root)
    assert code == 2 and broken.keys() >= {"1.png"} and len(rows) + len(broken) == 4
    assert broken.keys() | {row["path"] for row in rows} == {f"{k}.png" for k in range(4)} and len(rows) >= 2


def test_missing_files_of_a_table_are_listed_unless_all_are_missing(tmp_path, evaluated):
    root = tree(tmp_path / "clinic", "a/1.png", "a/2.png")
    write_table(root, [("a/1.png", "hand", "holdout"), ("a/none.png", "hand", "train"), ("a/2.png", "", "")], "path,label,split")
    code, out, result, rows, broken = evaluated(root)
    assert code == 2 and broken == {"a/none.png": "row 3 of images.csv: no such file"}
    assert [row["label"] for row in rows] == ["hand", ""] and "note: 1 of 2 images have a label in images.csv." in out
    write_table(root, [("b/7.png", "hand"), ("b/8.png", "hand")], "path,label")
    code, out, *_ = evaluated(root)
    assert code == 2 and "Rows of" in out and "row 2 'b/7.png' (no such file)" in out


def test_a_single_image_whose_values_do_not_fit_the_range_is_listed(tmp_path, evaluated, run):
    content = torch.load(run / "model.pt", weights_only=True)
    content["input"]["ranges"] = {"integer": [0.0, 4095.0, "measured"]}
    torch.save(content, run / "model.pt")
    root = tree(tmp_path / "clinic", *(f"{k}.png" for k in range(4)))
    deep = np.random.default_rng(0).integers(0, 65536, (20, 20)).astype(np.uint16)
    films.write_bytes(root / "odd", "png", films.png(deep[..., None]))
    code, out, result, rows, broken = evaluated(root)
    assert code == 2 and broken == {"odd.png": "many values outside the range of the run's own images (0 to 4095)"} and len(rows) == 4
    code, out, result, rows, broken = evaluated(root, "--bits", "16")
    assert code == 0 and len(rows) == 5 and not broken
    code, out, result, rows, broken = evaluated(root, "--bits", "10")
    assert code == 2 and "values" in broken["odd.png"] and len(rows) == 4
    for k in range(4):
        films.write_bytes(root / f"{k}", "png", films.png((np.flip(deep, 0) if k % 2 else deep)[..., None]))
    code, out, result, *_ = evaluated(root)
    assert code == 2 and result is None and "has 5 images with many values outside the range of the run's own images" in out
    assert "--bits 16" in out


def test_several_runs_each_write_their_predictions(tmp_path, script, run):
    shutil.copytree(run, "runs/two")
    root = tree(tmp_path / "clinic", "1.png", "2.png")
    (root / "of two\nlines.png").write_bytes(b"")
    code, out = script("evaluate", ["runs/one", "runs/two", "--dataset", "folder", "--data-dir", root, "--device", "cpu"])
    assert code == 2 and out.count("incomplete: 1 of 3 images in") == 2 and "skipped:" not in out
    assert "unreadable: 1 of 3: of two lines.png (empty)\n" in out
    for name in ("one", "two"):
        [where] = Path("runs", name).glob("evaluation-*")
        assert len(read_csv(where / "predictions.csv")) == 2 and len(read_csv(where / "unreadable.csv")) == 1
    code, out = script("evaluate", ["runs/one", "runs/none", "--dataset", "folder", "--data-dir", root, "--device", "cpu"])
    assert code == 4 and "incomplete: 1 of 3" in out and "skipped: " in out  # a run without predictions weighs more


def test_files_without_a_size_are_not_opened(tmp_path, monkeypatch):
    """Files of /proc have the size 0, and reading some of them never ends."""
    root = tree(tmp_path / "clinic", "whole.png")
    for name in ("link.png", "IM1"):
        (root / name).touch()

    def no_waiting(file, *args, **options):
        assert str(file).endswith("whole.png")
        return open(file, *args, **options)
    for module in ("find", "patients"):
        monkeypatch.setattr(f"kd.data.files.{module}.open", no_waiting, raising=False)
    assert len(folder.read(str(root), CLASSES).samples) == 2


# Nothing is lost


def test_the_same_command_decodes_nothing_again_and_writes_the_same(tmp_path, evaluated, run, monkeypatch):
    root = tree(tmp_path / "clinic", *(f"p{k}/1.png" for k in range(6)))
    (root / "p6").mkdir()
    (root / "p6/1.png").write_bytes(b"no image")
    decoded, square = [], pixels.square
    monkeypatch.setattr(pixels, "square", lambda content, how: decoded.append(content) or square(content, how))
    code, *_ = evaluated(root)
    [where] = run.glob("evaluation-*")
    first = (where / "predictions.csv").read_bytes()
    assert code == 2 and len(decoded) == 7
    code, _, result, *_ = evaluated(root)
    assert code == 2 and result is None and len(decoded) == 8  # only the broken one is tried again, in the same folder
    assert (where / "predictions.csv").read_bytes() == first and len(list(run.glob("evaluation-*"))) == 1


def test_results_of_other_content_are_kept(tmp_path, evaluated, run):
    one, other = (tree(tmp_path / clinic / "images", "p1/1.png", "p2/1.png") for clinic in ("north", "south"))
    assert evaluated(one)[0] == evaluated(other)[0] == 0
    assert len(list(run.glob("evaluation-images-*"))) == 2  # equal names of files, other images
    whole = (one / "p2/1.png").read_bytes()
    (one / "p2/1.png").write_bytes(whole[:60])
    code, _, result, rows, broken = evaluated(one)
    assert code == 2 and len(rows) == 1 and list(broken) == ["p2/1.png"] and len(list(run.glob("evaluation-images-*"))) == 3
    (one / "p2/1.png").write_bytes(whole)
    code, _, result, *_ = evaluated(one)
    assert code == 0 and result is None  # the first result again
    assert sum((where / "unreadable.csv").is_file() for where in run.glob("evaluation-images-*")) == 1


# Probabilities


def outputs(rows, prefix):
    return np.array([[float(text) for name, text in row.items() if name.startswith(prefix)] for row in rows])


@pytest.mark.parametrize("temperature", [1.5, None, 0.05])
def test_probabilities_are_scaled_by_the_temperature_of_the_run(tmp_path, evaluated, run, temperature):
    change_calibration(run, temperature)
    root = tree(tmp_path / "clinic", *(f"{k}.png" for k in range(5)))
    code, out, result, rows, _ = evaluated(root)
    logits, likely = outputs(rows, "logit_"), outputs(rows, "probability_")
    assert code == 0 and likely.shape == (5, 7)
    assert np.abs(likely - softmax(logits / (temperature or 1), axis=1)).max() < 1e-6
    assert np.abs(likely.sum(1) - 1).max() < 1e-5
    assert list(rows[0])[8:] == [f"{prefix}_{name}" for prefix in ("logit", "probability") for name in SYNTHETIC]
    assert result["probabilities"] == {"temperature": temperature, "reason": None if temperature else "all are right"}
    said = f"probabilities: softmax(logits / {temperature:.6g}), calibrated" if temperature else (
        "probabilities: softmax of the logits, not calibrated: all are right")
    assert said in out


def test_the_predictions_of_a_run_have_probabilities(script):
    assert script("train_teacher", ["--model", "kdtiny", *TINY])[0] == 0
    run = DATA / "teacher/kdtiny/seed0"
    temperature = reports.read(run)["evidence"]["calibration"]["temperature"] or 1.0
    rows = read_csv(run / "predictions.csv")
    likely = outputs(rows, "probability_")
    assert {row["part"] for row in rows} == {"valid", "test"}
    assert np.abs(likely - softmax(outputs(rows, "logit_") / temperature, axis=1)).max() < 1e-6
    assert read_predictions(run).logits.shape[1] == 7
    assert script("evaluate", [run])[1].count("(reproduced)") == 1


NAMES = ("probability_x", "logit_x", "x", "label", "probability_logit_x")


def written(where, classes, strip=False):
    """Write a predictions.csv of three images of each class, without probabilities if `strip`, and return its logits."""
    samples = tuple(Sample(f"{k}.png", k % len(classes), f"p{k}", f"s{k}") for k in range(3 * len(classes)))
    logits = np.random.default_rng(1).normal(size=(len(samples), len(classes))).astype(np.float32)
    index, rows = Index("set", classes, samples), np.arange(len(samples))
    text = predictions_csv(index, {"test": rows}, {"test": logits}, {"test": np.zeros(len(samples), int)}, 2.0)
    if strip:
        text = "".join(",".join(line.split(",")[:8 + len(classes)]) + "\n" for line in text.splitlines())
    where.mkdir(exist_ok=True)
    (where / "predictions.csv").write_text(text)
    return logits


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("classes", [CLASSES, NAMES])
def test_predictions_are_read_by_name_and_old_ones_too(tmp_path, classes, strip):
    logits = written(tmp_path / "run", classes, strip)
    found = read_predictions(tmp_path / "run")
    assert np.array_equal(found.logits, logits) and found.logits.dtype == np.float32
    assert found.labels.tolist() == [k % len(classes) for k in range(len(logits))] and not found.teacher.any()


@pytest.mark.parametrize("old, new", [
    ("logit_ill", "ill"), ("probability_ill", "probability_well"), (",probability_ill", ",extra"), ("logit_healthy,logit_ill", "logit_ill,logit_healthy"),
    ("logit_healthy", "probability_healthy"), ("label,", "class,")])
def test_other_columns_are_refused(tmp_path, old, new):
    written(tmp_path / "run", CLASSES)
    file = tmp_path / "run/predictions.csv"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(Problem, match="is damaged .no rows of split test, or other columns than expected"):
        read_predictions(tmp_path / "run")
