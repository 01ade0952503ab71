"""What --check-data knows of training, and the files that it writes."""

import json
import shlex
from pathlib import Path

import pytest
from checked_sets import EACH, check, checked, films, kinds
from conftest import write_table
from films import film
from PIL import Image

from kd.config import parsing
from kd.config.evaluate_settings import EvaluateSettings, data_settings
from kd.config.settings import Data
from kd.runs.session import check_command


def split_table(root, split_of):
    """Write an images.csv of the films with a patient for each."""
    write_table(root, [(f"{'ab'[k % 2]}/{k}.png", "ab"[k % 2], f"p{k}", split_of(k)) for k in range(2 * EACH)],
                "path,label,patient,split")


def test_an_empty_cell_of_the_split_is_train(tmp_path):
    root = films(tmp_path / "set")
    rows = [("a/0.png", "a", "p", "train"), ("a/2.png", "a", "p", ""), ("a/4.png", "a", "q", ""), ("a/copy.png", "a", "q", "train"),
            ("a/near.jpg", "a", "q", "train")]
    (root / "a/copy.png").write_bytes((root / "a/4.png").read_bytes())
    Image.fromarray(film(0, 64)).resize((96, 80)).save(root / "a/near.jpg", quality=90)
    write_table(root, rows + [(f"b/{k}.png", "b", f"b{k}", "") for k in range(1, 23, 2)], "path,label,patient,split")
    result = checked(root)
    assert result["patients_across_parts"] == [] and result["copies_across_parts"] == [] and result["copies"] == 2
    assert result["counts"] == {"a": {"train": 5}, "b": {"train": 11}}
    assert result["near_duplicates"]["pairs"] == 1 and result["near_duplicates"]["across_parts"]["pairs"] == 0
    write_table(root, [*rows, ("a/6.png", "a", "p", "test"), ("b/1.png", "b", "r", "test"), ("b/3.png", "b", "s", "")],
                "path,label,patient,split")
    result = checked(root)
    assert result["patients_across_parts"] == ["p"] and result["counts"] == {"a": {"train": 5, "test": 1},
                                                                             "b": {"train": 1, "test": 1}}


def test_what_training_says_about_the_splits(script, tmp_path):
    root = films(tmp_path / "set")
    (root / "a/again.png").write_bytes((root / "a/0.png").read_bytes())
    assert checked(root)["notes"][-1] == "1 image was excluded: identical to another."
    split_table(root, lambda k: "test" if k in (0, 2) else "val" if k in (1, 3) else "train")
    code, out, result = check(script, root)
    assert code == 0 and result["classes_absent"] == {"validation": ["a"], "test": ["b"]} and result["split"] == "patient"
    assert "note: The validation split has no images of a; the test split has no images of b." in out.splitlines()
    assert result["warnings"][:2] == [
        f"1 class has no images in the {name} split: {word}. Add patients of these classes, or no result on this split includes"
        " them." for name, word in (("validation", "a"), ("test", "b"))]


def test_a_note_says_that_split_given_draws_the_splits_of_a_data_set_that_has_none(script, tmp_path):
    root = films(tmp_path / "set")
    note = "note: The data set specifies no splits: --split given draws them at random, by patient."
    assert [note in check(script, root, *how)[1].splitlines() for how in ((), ("--split", "given"))] == [False, True]


def test_other_splits_are_tried(script, tmp_path):
    """A patient in all splits leaves nothing for `patient`, but `given` keeps the images."""
    root = films(tmp_path / "set")
    write_table(root, [(f"{'ab'[k % 2]}/{k}.png", "ab"[k % 2], f"p{k % 2}", ("train", "val", "test")[k // 2 % 3])
                       for k in range(2 * EACH)], "path,label,patient,split")
    result = checked(root)
    assert "--split patient leaves the train split" in result["refused"]
    assert "2 patients are in more than one split" in kinds(result["problems"]) and "training would stop" in kinds(result["problems"])
    code, out, result = check(script, root, "--split", "given")
    assert code == 2 and result["split"] == "given" and kinds(result["problems"]) == ["2 patients are in more than one split"]
    (root / "images.csv").unlink()
    (root / "b/again.png").write_bytes((root / "a/0.png").read_bytes())
    assert "have different labels" in checked(root)["refused"]
    result = checked(root, split="thesis")
    assert result["refused"] == "" and any("it LEAKS patients" in note for note in result["notes"])


def test_grades_are_checked(script, tmp_path):
    root = films(tmp_path / "set")
    code, out, result = check(script, root, "--graded")
    assert code == 2 and "--graded needs at least two classes, named 0, 1, 2 and so on" in out
    assert result["problems"][0].startswith("the data set cannot be read: Classes a, b in ")
    for old, new in (("a", "0"), ("b", "1")):
        (root / old).rename(root / new)
    assert check(script, root, "--graded")[0] == 0


@pytest.mark.parametrize("words", [["--graded"], ["--split", "given"]])
def test_settings_of_training_apply_only_to_a_check(script, tmp_path, words):
    code, out = script("evaluate", ["run", "--dataset", "folder", "--data-dir", tmp_path, *words])
    assert code == 2 and f"error: {words[0]} works only with --check-data" in out


def test_the_command_for_new_data_repeats_what_matters():
    words = shlex.split(check_command(Data(dataset="folder", data_dir="a b", graded=True, split="given", columns=["a=b", "c=d"])))
    assert words[2:] == ["--check-data", "--dataset", "folder", "--data-dir", "a b", "--columns", "a=b", "c=d", "--graded",
                         "--split", "given"]
    [settings] = parsing.parse(EvaluateSettings, words[2:])
    assert data_settings(settings.judging) == Data(dataset="folder", data_dir="a b", graded=True, split="given",
                                                   columns=["a=b", "c=d"])
    assert check_command(Data()) == "python evaluate.py --check-data --dataset mura"


def test_a_refused_set_is_written_too(script, tmp_path):
    root = films(tmp_path / "set")
    assert check(script, root)[0] == 0
    write_table(root, [("a/0.png", "a", "p"), ("a/gone.png", "b", "q")])
    code, out, result = check(script, root)
    assert code == 2 and "written: runs/check-set.json" in out.splitlines() and "gone.png" in out.splitlines()[-1]
    assert result["name"] == "set" and len(result["problems"]) == 1 and result["warnings"] == []
    assert result["problems"][0].startswith("the data set cannot be read: ") and "gone.png" in result["problems"][0]
    code, out = script("evaluate", ["--check-data", "--dataset", "mura", "--data-dir", root])
    assert code == 2 and "the data set cannot be read" in json.loads(Path("runs/check-mura.json").read_text())["problems"][0]
    code, out = script("evaluate", ["--check-data", "--dataset", "folder", "--data-dir", tmp_path / "none"])
    assert code == 2 and "no such folder" in out and not Path("runs/check-none.json").exists(), "a typing mistake"


def test_sets_of_the_same_name_have_files_of_their_own(script, tmp_path):
    images = [6, 8]
    roots = [films(tmp_path / place / "test", each=each) for place, each in zip(("north", "south"), images)]
    for _ in range(2):  # the second time, each overwrites its own
        outs = [check(script, root)[1] for root in roots]
    files = [Path(line.removeprefix("written: ")) for out in outs for line in out.splitlines() if line.startswith("written: ")]
    assert sorted(Path("runs").glob("check-*")) == sorted(files) and files[0] == Path("runs/check-test.json")
    assert [json.loads(file.read_text())["images"] for file in files] == [12, 16]
    assert [json.loads(file.read_text())["source"]["data_dir"] for file in files] == list(map(str, roots))
    files[0].write_text("damaged")
    check_of = script("evaluate", ["--check-data", "--dataset", "folder", "--data-dir", roots[0]])
    assert check_of[0] == 0 and files[0].read_text() == "damaged" and len(list(Path("runs").glob("check-*"))) == 3
