"""Patients leave the house in predictions.csv only: no other file of a run holds their names.

A run is made of images, folders, tables and DICOM headers that are full of names, and the bytes of all files are searched.
"""

import copy
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAIR, TINY, weights, write_table
from PIL import Image

from kd.config.settings import Data
from kd.data.dataset import open_dataset, read_index
from kd.data.index import are_among
from kd.system.errors import Problem, first_names, first_ten
from kd.system.names import NOT_STORED, Note, named, stored, with_names, without_names
from kd.teachers import model_file
from kd.teachers.hashed_patients import are_among_hashed, hashed, salt_of

# Each name of a patient, a file, a folder, a study or an element of a header contains one of these.
SECRETS = ("DOE^JANE", "DOE_JANE", "MRN4711", "ACC4711", "MÜLLER")
WITH_NAMES = ("predictions.csv", "unreadable.csv", "check-*.json")  # documented as such


def parts_of(file):
    """Yield the bytes of a file as they are, of the members of a zip file, and of the texts in a PNG."""
    yield str(file).encode()
    yield file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as members:
            for name in members.namelist():
                yield name.encode() + b"\n" + members.read(name)
    if file.suffix == ".png":
        yield repr(Image.open(file).info).encode()


def secrets_in(file):
    """Return the names that a file holds, in any case and as any program may have written them."""
    found = set()
    for content in parts_of(file):
        content = content.lower()
        for secret in SECRETS:
            spellings = {json.dumps(text)[1:-1].lower().encode() for text in (secret, secret.lower())}
            for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le"):
                for text in (secret, secret.lower()):  # bytes.lower changes ASCII letters only
                    spellings.add(text.encode(encoding).lower())
            if any(spelling in content for spelling in spellings):
                found.add(secret)
    return found


def holding_names(*roots):
    """Return {path: names in it} of all files below these folders, except those that may hold names."""
    found = {}
    for root in roots:
        for file in sorted(Path(root).rglob("*")):
            if file.is_file() and not any(file.match(name) for name in WITH_NAMES):
                names = secrets_in(file)
                if names:
                    found[file.as_posix()] = sorted(names)
    return found


def hospital(tmp_path, name, first=0, count=48, side=(20, 24), deep=False):
    """Write a folder whose table, paths, patients and studies are names, and that gives as many notes as possible.

    Two patients have an identical file, one is written in two ways, an image is not in the table, and half of the images
    have a path with a folder that does not exist.
    """
    root = tmp_path / name
    generator = np.random.default_rng(first)
    rows = []
    for number in range(count):
        patient = first + number // 2
        path = f"DOE^JANE^1950-{patient:03d}/MRN4711{patient:03d}/ACC4711_{number}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        high, kind = (60000, np.uint16) if deep else (256, np.uint8)
        pixels = generator.integers(0, high if number == 5 else high // 8, side).astype(kind)
        Image.fromarray(pixels).save(root / path)
        old = f"MRN4711-archive/{path}" if number % 2 else path
        person = f"MÜLLER^{patient:03d}" if number != 7 else f"müller^{patient:03d}"
        rows.append((old, "ab"[patient % 2], person, f"ACC4711.{patient}"))
    shutil.copy(root / rows[0][0], root / rows[8][0])
    shutil.copy(root / rows[0][0], root / "DOE^JANE-unlisted.png")
    (root / "MRN4711-empty").mkdir()
    (root / "letter.MRN4711").write_bytes(b"no image")
    (root / "letter.pdf").write_bytes(b"no image")
    write_table(root, rows, "path,label,patient,study")
    return root


def folder_of(root):
    return ["--dataset", "folder", "--data-dir", root]


def must(done):
    code, out = done
    assert code == 0, out
    return out


def test_no_file_of_a_study_holds_a_name_except_predictions_and_the_check_of_the_data(script, tmp_path):
    ours, theirs = hospital(tmp_path, "ours"), hospital(tmp_path, "theirs", 500)
    for seed in ("0", "1"):
        said = must(script("distill", [*PAIR, "--mode", "normal", *folder_of(ours), "--seed", seed]))
    assert "DOE^JANE-unlisted.png" in said and "MÜLLER" in said  # the console names them
    must(script("train_teacher", ["--model", "kdtiny", *TINY, *folder_of(ours)]))
    [run] = Path("runs").glob("*/normal/*/seed0")
    [teacher] = Path("runs").glob("*/teacher/kdwide/seed0")
    other = [*PAIR, *folder_of(theirs), "--teacher-checkpoint", teacher / "model.pt", "--allow-foreign-teacher"]
    archive = hospital(tmp_path, "archive", 800)
    must(script("distill", [*other, "--mode", "normal", "--out", "other"]))
    must(script("distill", [*other, "--mode", "unlabeled", "--unlabeled-dir", archive, "--out", "other"]))
    for words in (["--card", run], ["--shift", run], ["--look", run], [run], [run, *folder_of(theirs)]):
        must(script("evaluate", [*words, "--device", "cpu"]))
    for words in (["--tables", "runs"], ["--curves", run]):
        must(script("evaluate", words))
    script("evaluate", ["--check-data", *folder_of(ours)])
    code, _ = script("distill", [*PAIR, "--mode", "normal", *folder_of(ours), "--max-minutes", "0", "--tag", "stopped"])
    [resume] = Path("runs").glob("*/normal-stopped/*/seed0/resume.pt")
    assert code == 143 and resume.is_file()
    files = [path for path in Path(".").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"report.json", "evaluation.json", "tables.json", "card.json", "ended.json", "settings.json", "model.pt", "card.md", "study.html"} <= names
    assert holding_names("runs", "other", "cache") == {}
    assert json.loads((run / "report.json").read_text())["data"]["other_files"] == {"(other)": 1, ".pdf": 1}
    assert len([path for path in files if path.name == "predictions.csv" and secrets_in(path)]) == 8
    assert any(secrets_in(path) for path in Path("runs").glob("check-*.json"))


def test_the_prediction_of_a_tree_of_patients_keeps_their_names_in_two_files(script, labelled, tmp_path):
    must(script("train_teacher", ["--model", "kdtiny", *TINY, *folder_of(labelled)]))
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    archive = hospital(tmp_path, "archive", 800)
    (archive / "images.csv").unlink()
    [first, *_] = sorted(archive.glob("DOE*/*/*.png"))
    (first.parent / "MRN4711_mask.png").write_bytes(first.read_bytes())
    (first.parent / ("MRN4711" + "x" * 240 + ".png")).write_bytes(b"no image")
    code, said = script("evaluate", [run, *folder_of(archive), "--device", "cpu"])
    assert code == 2 and "DOE^JANE^1950-800" in said and "\ufdd0" not in said and "\ufdd1" not in said
    [found] = run.glob("evaluation-*")
    assert holding_names("runs", "cache") == {}
    assert NOT_STORED in (found / "evaluation.json").read_text() and secrets_in(found / "unreadable.csv")


def test_the_search_finds_names_in_every_kind_of_file(tmp_path):
    torch.save({"patients": ["DOE^JANE^1950-01-07"]}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data.pkl", "x" * 99 + "mrn4711007" + "x" * 99)
    (tmp_path / "report.json").write_text(json.dumps({"path": "MÜLLER"}))
    (tmp_path / "events.out").write_bytes("ACC4711".encode("utf-16-le"))
    (tmp_path / "DOE_JANE").write_bytes(b"")
    (tmp_path / "predictions.csv").write_text("DOE^JANE")
    assert len(holding_names(tmp_path)) == 5


def test_images_with_many_bits_name_the_odd_one_on_the_console_only(script, tmp_path):
    root = hospital(tmp_path, "deep", deep=True)
    must(script("train_teacher", ["--model", "kdtiny", *TINY, *folder_of(root)]))
    [report] = Path("runs").rglob("report.json")
    [rule] = [one[2] for one in json.loads(report.read_text())["data"]["ranges"].values()]
    assert "use less than a quarter of it" in rule and NOT_STORED in rule and holding_names("runs", "cache") == {}
    script("evaluate", ["--check-data", *folder_of(root)])
    assert any("quarter of it, but DOE^JANE" in path.read_text() for path in Path("runs").glob("check-*.json"))


def test_nothing_of_a_dicom_header_is_in_a_file_of_a_run(script, tmp_path):
    pytest.importorskip("pydicom")
    from dicom_files import write_dicom
    generator = np.random.default_rng(0)
    for number in range(32):
        patient = f"{number // 2:03d}"
        header = {"PatientID": f"MRN4711{patient}", "PatientName": f"DOE^JANE^{patient}", "AccessionNumber": f"ACC4711{number}",
                  "StudyDescription": "MRN4711", "IssuerOfPatientID": "MRN4711-house", "PatientBirthDate": "19500107",
                  "StudyDate": "20240229", "StudyInstanceUID": f"1.2.840.4711.1{patient}", "InstitutionName": "ACC4711",
                  "SpecificCharacterSet": "ISO_IR 192", "ReferringPhysicianName": "MÜLLER"}
        values = generator.integers(0, 4096, (24, 20), dtype=np.uint16)
        write_dicom(tmp_path / "pacs" / "ab"[number // 2 % 2] / f"{number}.dcm", values, BitsStored=12, **header)
    must(script("distill", [*PAIR, "--mode", "normal", *folder_of(tmp_path / "pacs")]))
    [run] = Path("runs").glob("*/normal/*/seed0")
    must(script("evaluate", [run, "--device", "cpu"]))
    assert holding_names("runs", "cache") == {}
    for text in (b"1.2.840.4711", b"19500107", b"20240229"):
        for file in Path("runs").rglob("*"):
            if file.is_file() and file.name != "predictions.csv":
                assert not any(text in content for content in parts_of(file)), file
    assert "MRN4711" in (run / "predictions.csv").read_text()


def _odd_file(root):
    next(root.rglob("ACC4711_3.png")).write_bytes(b"no image")


def _lost_file(root):
    next(root.rglob("ACC4711_3.png")).unlink()


def _table(change):
    def spoil(root):
        (root / "images.csv").write_text(change((root / "images.csv").read_text()))
    return spoil


def _raises(error):
    def spoil(root, monkeypatch):
        def fail(*_, **__):
            raise error
        monkeypatch.setattr("kd.data.dataset.without_copies", fail)
    return spoil


@pytest.mark.parametrize("spoil, shown, kept", [
    (_odd_file, "ACC4711_3.png", "cannot be read: "), (_lost_file, "ACC4711_3.png", "Rows of "),
    (_table(lambda text: text.partition("\n")[2]), "MÜLLER", "has an invalid header"),
    (_table(lambda text: text.replace(",a,", ",a|b,", 2)), "ACC4711", "2 rows have several labels"),
    (_table(lambda text: text.replace("MÜLLER^003", "4.71123E+11")), "ACC4711", "without the last digits"),
    (_table(lambda text: text + text.splitlines()[1].replace(",a,", ",b,") + "\n"), "ACC4711", "1 image has several labels"),
    (_raises(KeyError("DOE^JANE")), "DOE^JANE", "A bug in this program while the data set was read (KeyError"),
    (_raises(PermissionError(13, "Permission denied", "DOE^JANE/1.png")), "DOE^JANE", "An error while the data set was read")])
def test_the_record_of_a_failed_run_says_what_was_wrong_without_names(script, tmp_path, monkeypatch, spoil, shown, kept):
    root = hospital(tmp_path, "ours")
    words = spoil.__code__.co_argcount
    spoil(root, monkeypatch) if words == 2 else spoil(root)
    try:
        code, out = script("train_teacher", ["--model", "kdtiny", *TINY, *folder_of(root)])
    except (KeyError, PermissionError) as error:
        code, out = 1, str(error)
    [record] = Path("runs").rglob("ended.json")
    message = json.loads(record.read_text())["message"]
    assert code and shown in out.splitlines()[-1]
    assert kept in message and NOT_STORED in message and holding_names("runs", "cache") == {}


def test_names_are_marked_in_messages_and_notes():
    text = f"2 images are bad: {first_names(['DOE^JANE', named('MRN4711')])}. Remove 'em."
    assert with_names(text) == "2 images are bad: DOE^JANE, MRN4711. Remove 'em."
    assert without_names(text) == f"2 images are bad: {NOT_STORED}. Remove 'em."
    assert str(Problem(text)) == with_names(text) and without_names(Problem(text).marked) == without_names(text)
    note = Note(text)
    assert note == with_names(text) and stored([note, "plain"]) == [without_names(text), "plain"]
    assert stored(copy.deepcopy([note])) == [without_names(text)]


PEOPLE = ("10", "11", "A::10", "B::10", "A::11", "A::12", "12", "A::", "::7", "7", "X::A::10", "MÜLLER", "A::MÜLLER", "a\udcffb")


def test_a_long_item_of_a_list_keeps_its_marks():
    for text in (f"{named('DOE' * 200)} (cut)", "x" * 300 + named("DOE"), f"{named('DOE')} " + "x" * 300):
        assert "DOE" not in without_names(first_ten([text, "plain"])) and "DOE" not in without_names(first_names([text, "plain"]))


def test_hashed_patients_are_compared_as_their_names_are():
    chance = random.Random(0)
    salt = salt_of("a", "b")
    for guess in (False, True):
        for _ in range(300):
            others = set(chance.sample(PEOPLE, chance.randint(0, 6)))
            own = chance.sample([*PEOPLE, None], 6)
            expected = are_among(own, others, guess)
            assert are_among_hashed(own, hashed(others, salt), salt, guess).tolist() == expected.tolist(), (own, others, guess)


def test_a_patient_has_another_hash_in_each_file_and_the_order_says_nothing(script, labelled):
    for seed in ("0", "1"):
        must(script("train_teacher", ["--model", "kdwide", *TINY, *folder_of(labelled), "--batch-size", "4", "--seed", seed]))
    first, second = (model_file.load(run / "model.pt").about["data"] for run in sorted(Path("runs").glob("*/teacher/*/seed*")))
    assert first["salt"] != second["salt"] and first["split_hash"] == second["split_hash"]
    for split in ("train", "valid"):
        one, other = ({row.numpy().tobytes() for row in data["patients"][split]} for data in (first, second))
        assert len(one) == len(other) > 0 and one.isdisjoint(other)
        assert sorted(one) == [row.numpy().tobytes() for row in first["patients"][split]]
        names = [f"p{number}" for number in range(8)]
        assert (are_among_hashed(names, first["patients"][split], first["salt"])
                == are_among_hashed(names, second["patients"][split], second["salt"])).all()


def as_before(file, names, inherited=()):
    """Rewrite a model.pt as earlier versions did: with the names of patients."""
    content = torch.load(file, weights_only=True)
    data = content["data"]
    data.pop("salt", None)
    data["patients"] = names
    data["inherited"] = list(inherited)
    torch.save(content, file)
    return content


def test_a_model_of_an_earlier_version_refuses_and_passes_as_before_and_its_student_holds_no_names(script, tmp_path):
    ours, theirs = hospital(tmp_path, "ours"), hospital(tmp_path, "theirs", 500)
    must(script("train_teacher", ["--model", "kdwide", *TINY, *folder_of(ours)]))
    [run] = Path("runs").glob("*/teacher/kdwide/seed0")
    new = model_file.load(run / "model.pt").about["data"]
    names = {split: [f"MÜLLER^{number:03d}" for number in range(24)
                     if are_among_hashed([f"MÜLLER^{number:03d}"], new["patients"][split], new["salt"])[0]]
             for split in ("train", "valid")}
    assert len(names["train"]) + 1 >= len(new["patients"]["train"]) > 10 and names["valid"]
    none = torch.zeros(0, 16, dtype=torch.uint8)
    as_before(run / "model.pt", names)
    assert secrets_in(run / "model.pt") == {"MÜLLER"}
    loaded = model_file.load(run / "model.pt").about["data"]
    assert loaded["salt"] == new["salt"] and torch.equal(loaded["patients"]["valid"], new["patients"]["valid"])
    student = [*PAIR, "--mode", "normal", "--teacher-checkpoint", run / "model.pt", "--allow-foreign-teacher"]
    code, out = script("distill", [*student, *folder_of(ours), "--split-seed", "1", "--out", "refused"])
    assert code == 4 and "of the student's" in out
    must(script("distill", [*student, *folder_of(theirs), "--out", "passes"]))
    [taught] = Path("passes").glob("*/normal/*/seed0")
    [entry] = model_file.load(taught / "model.pt").about["data"]["inherited"]
    assert holding_names("passes") == {} and torch.equal(entry["patients"]["train"], loaded["patients"]["train"])
    assert entry["salt"] == loaded["salt"]
    data = Data(dataset="folder", data_dir=str(theirs), image_size=32)
    dataset = open_dataset(data, read_index(data))
    for split, expected in (("train", 0), ("test", 4)):  # the teachers of this teacher have seen a patient
        older = {"name": "x", "space": "", "patients": {"train": model_file.known_patients(dataset, split)[:1], "valid": []},
                 "files": {"train": none, "valid": none}}
        as_before(run / "model.pt", names, [older, older])  # two students of one teacher
        code, out = script("distill", [*student, *folder_of(theirs), "--out", f"inherited from {split}"])
        assert code == expected and ("the train split of 'x'" in out) == (expected == 4), out


@pytest.mark.parametrize("damage", [
    lambda data: data.pop("salt"), lambda data: data.update(salt=3),
    lambda data: data["patients"].update(train=torch.zeros(2, 16, dtype=torch.uint8)),
    lambda data: data["patients"].update(train=["MÜLLER"]),
    lambda data: data["patients"].update(valid=torch.zeros(0, 32))])
def test_a_model_with_hashes_that_cannot_be_compared_is_refused(script, labelled, damage):
    must(script("train_teacher", ["--model", "kdwide", *TINY, *folder_of(labelled), "--batch-size", "4"]))
    [file] = Path("runs").rglob("model.pt")
    content = torch.load(file, weights_only=True)
    damage(content["data"])
    torch.save(content, file)
    with pytest.raises(Problem) as caught:
        model_file.load(file)
    assert caught.value.code == 4


def events_of(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    return events


def test_training_images_stay_out_of_tensorboard_on_request_which_changes_nothing_else(script):
    words = ["train_teacher", ["--model", "kdtiny", *TINY]]
    must(script(*words))
    must(script(words[0], [*words[1], "--no-log-images", "--out", "without"]))
    [run], [without] = (list(Path(out).glob("*/teacher/*/seed0")) for out in ("runs", "without"))
    assert any("views" in tag for tag in events_of(run).Tags()["images"])
    assert {tag for tag in events_of(without).Tags()["images"]} == {"confusion", "reliability"}
    assert (run / "predictions.csv").read_bytes() == (without / "predictions.csv").read_bytes()
    assert all(torch.equal(one, weights(without)[key]) for key, one in weights(run).items())
    must(script("distill", [*PAIR, "--mode", "normal", "--no-log-images", "--out", "both"]))
    for folder in Path("both").glob("*/*/*/seed0"):  # also of the teacher that is trained first
        assert {tag for tag in events_of(folder).Tags()["images"]} == {"confusion", "reliability"}
    out = must(script(words[0], [*words[1], "--no-log-images"]))  # no change that would make the finished run unusable
    assert "already finished" in out
