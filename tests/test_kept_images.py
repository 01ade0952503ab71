"""A finished run is evaluated on its own test images, however the data set has changed since."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_table
from PIL import Image

FLAGS = ["--dataset", "folder", "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--no-pretrained", "--device", "cpu"]
RUN = Path("runs/set-patient-32/teacher/kdtiny/seed0")


def grow(root, first, count):
    """Add images of new patients, two images each, to the folder and its table."""
    random = np.random.default_rng(first)
    for number in range(first, first + count):
        Image.fromarray(random.integers(0, 256, (20, 24), dtype=np.uint8)).save(root / f"{number:03d}.png")
    write_table(root, [(f"{number:03d}.png", "ab"[number % 2], f"P{number // 4}") for number in range(first + count)])


@pytest.fixture
def trained(tmp_path, script):
    root = tmp_path / "set"
    root.mkdir()
    grow(root, 0, 80)
    assert script("train_teacher", ["--model", "kdtiny", "--data-dir", "set", *FLAGS])[0] == 0
    return root


def evaluated(script, *more):
    code, said = script("evaluate", [RUN, "--device", "cpu", *more])
    result = json.loads((RUN / "evaluation.json").read_text()) if code == 0 else None
    return code, said, result


def test_a_set_that_grew_in_ten_steps_still_evaluates_the_run(trained, script):
    before = (RUN / "evaluation.json", json.loads((RUN / "report.json").read_text())["results"]["best"]["test_accuracy"])[1]
    for step in range(10):
        grow(trained, 80 + 4 * step, 4)
        code, said, result = evaluated(script)
        assert code == 0 and result["equals_report"] and result["accuracy"] == before, said
    assert script("evaluate", ["--shift", RUN, "--device", "cpu"])[0] == 0


def test_files_that_were_renamed_are_found_by_their_content(trained, script):
    lines = (trained / "images.csv").read_text().splitlines()
    (trained / "moved").mkdir()
    for file in trained.glob("*.png"):
        file.rename(trained / "moved" / file.name)
    (trained / "images.csv").write_text("\n".join([lines[0], *("moved/" + line for line in lines[1:])]) + "\n")
    code, said, result = evaluated(script)
    assert code == 0 and result["equals_report"], said


def test_an_image_with_another_content_is_named(trained, script):
    test = next(line.split(",")[1] for line in (RUN / "predictions.csv").read_text().splitlines() if line.startswith("test"))
    Image.new("L", (20, 24), 7).save(trained / test)
    code, said, _ = evaluated(script)
    assert code == 2 and f"1 test image of run '{RUN}'" in said and test in said


def test_a_test_image_with_another_label_is_named(trained, script):
    test, label = next((line.split(",")[1], line.split(",")[4]) for line in (RUN / "predictions.csv").read_text().splitlines()
                       if line.startswith("test"))
    other = "b" if label == "a" else "a"
    text = (trained / "images.csv").read_text().replace(f"{test},{label}", f"{test},{other}")
    (trained / "images.csv").write_text(text)
    code, said, _ = evaluated(script)
    assert code == 2 and f"{test} ({label} -> {other})" in said


def test_a_new_class_does_not_orphan_a_run(trained, script):
    Image.new("L", (20, 24), 9).save(trained / "new.png")
    with (trained / "images.csv").open("a") as file:
        file.write("new.png,0th class,P900\n")
    code, said, result = evaluated(script)
    assert code == 0 and result["equals_report"], said


def test_a_set_that_moved_is_found_with_data_dir(trained, script):
    shutil.move(trained, "elsewhere")
    code, said, result = evaluated(script, "--data-dir", "elsewhere")
    assert code == 0 and result["equals_report"], said


def test_a_run_from_before_the_hashes_were_kept_is_evaluated_by_path(trained, script):
    content = torch.load(RUN / "model.pt", weights_only=True)
    del content["data"]["test_files"], content["input"]["ranges"]
    torch.save(content, RUN / "model.pt")
    grow(trained, 80, 4)
    code, said, result = evaluated(script)
    assert code == 0 and result["equals_report"], said


def test_predictions_that_do_not_fit_the_model_are_refused(trained, script):
    lines = (RUN / "predictions.csv").read_text().splitlines()
    (RUN / "predictions.csv").write_text("\n".join(lines[:-1]) + "\n")
    code, said, _ = evaluated(script)
    assert code == 4 and "do not belong together" in said


def a_test_image():
    """Return (path, label) of the first test image of the run."""
    line = next(line for line in (RUN / "predictions.csv").read_text().splitlines() if line.startswith("test"))
    return line.split(",")[1], line.split(",")[4]


def test_a_broken_file_at_the_old_place_of_a_test_image_does_not_matter(trained, script):
    path, _ = a_test_image()
    (trained / path).rename(trained / "renamed.png")
    (trained / path).write_bytes(b"junk")
    text = (trained / "images.csv").read_text()
    (trained / "images.csv").write_text(text + next(line.replace(path, "renamed.png") + "\n" for line in text.splitlines()
                                                    if line.startswith(path)))
    code, said, result = evaluated(script)
    assert code == 0 and result["equals_report"], said


def test_of_equal_files_the_one_with_the_label_of_the_run_is_taken(trained, script):
    path, label = a_test_image()
    (trained / path).rename(trained / "z.png")
    shutil.copy(trained / "z.png", trained / "0copy.png")
    text = (trained / "images.csv").read_text().replace(f"{path},", "z.png,")
    (trained / "images.csv").write_text(text + "0copy.png,,P500\n")
    code, said, result = evaluated(script)
    assert code == 0 and result["equals_report"], said


def test_corrections_may_move_with_the_data(tmp_path, trained, script):
    (trained / "errata.csv").write_text("image,label\n000.png,b\n")
    assert script("train_teacher", ["--model", "kdtiny", "--data-dir", "set", "--errata", "set/errata.csv", "--tag", "e", *FLAGS])[0] == 0
    run = "runs/set-patient-32/teacher-e/kdtiny/seed0"
    shutil.move(trained, "elsewhere")
    code, said = script("evaluate", [run, "--device", "cpu", "--data-dir", "elsewhere", "--errata", "elsewhere/errata.csv"])
    assert code == 0 and "(reproduced)" in said


def test_an_old_run_on_16_bit_images_is_reproduced(tmp_path, script):
    root = tmp_path / "set"
    root.mkdir()
    random = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(random.integers(0, 65536, (20, 24), dtype=np.uint16)).save(root / f"{number:03d}.png")
    write_table(root, [(f"{number:03d}.png", "ab"[number % 2], f"P{number}") for number in range(40)])
    assert script("train_teacher", ["--model", "kdtiny", "--data-dir", "set", *FLAGS])[0] == 0
    content = torch.load(RUN / "model.pt", weights_only=True)
    del content["data"]["test_files"], content["input"]["ranges"]
    torch.save(content, RUN / "model.pt")
    code, said, result = evaluated(script)
    assert code == 0 and result["equals_report"], said


def test_a_site_that_only_a_column_gives_does_not_hide_patients_who_were_seen(tmp_path, trained, script):
    rows = [line.split(",") for line in (trained / "images.csv").read_text().splitlines()[1:]]
    write_table(trained, [(*row, "ward1") for row in rows], "path,label,patient,site")
    assert script("train_teacher", ["--model", "kdtiny", "--data-dir", "set", "--tag", "s", *FLAGS])[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    grow(other, 0, 40)
    for file in other.glob("*.png"):
        Image.open(file).rotate(90).save(file)
    run = "runs/set-patient-32/teacher-s/kdtiny/seed0"
    code, said = script("evaluate", [run, "--device", "cpu", "--dataset", "folder", "--data-dir", "other"])
    assert code == 0 and "were seen in training or are of patients seen in training" in said
