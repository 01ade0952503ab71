"""Leakage: patients and files that a network has seen are recognised, whatever the folder is called."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, TINY, same, write_table

from kd.data.index import Index, Sample
from kd.data.pool import Pool
from kd.data.splits import Splits
from kd.system.errors import Problem
from kd.teachers import leakage, model_file
from kd.teachers.hashed_patients import are_among_hashed, hashed
from kd.teachers.model_file import Trained


def hashes(*numbers):
    """Return content hashes: uint8 [n, 16]."""
    return torch.tensor([[number] * 16 for number in numbers], dtype=torch.uint8).reshape(-1, 16)


def seen(name, split, space="", files=(), **patients):
    """Return what a network has seen, as in model.pt: patients of train and valid, files of train."""
    names = {"train": [], "valid": []} | patients
    return {"name": name, "space": space, "split": "patient", "split_hash": split, "content_hash": "c", "salt": split,
            "patients": {part: hashed(own, split) for part, own in names.items()},
            "files": {"train": hashes(*files), "valid": hashes()}, "inherited": []}


def about(*chain):
    return Trained(None, {"name": "net", "data": chain[0] | {"inherited": list(chain[1:])}}, "")


def data_of(split, name="A", space="", files=(), **patients):
    """Return a data set with one image of each patient; names with a dot are those of images.

    `files` are hashes of the test split.
    """
    samples, rows = [], {}
    for part in ("train", "valid", "test"):
        own = patients.get(part, [])
        rows[part] = np.arange(len(samples), len(samples) + len(own))
        samples += [Sample(one if "." in one else f"{one}.png", 0, one, one) for one in own]
    index = Index(name, ("a", "b"), tuple(samples), space)
    return SimpleNamespace(split_hash=split, content_hash="c", index=index, settings=SimpleNamespace(split="patient", site=""),
                           splits=Splits(**rows, pool=rows["train"]), files=lambda part: hashes(*files if part == "test" else ()))


def test_seen_data_is_inherited_through_a_chain_and_other_splits_are_other_data():
    chain = about(seen("A", "other"), seen("B", "b"))
    assert [one["name"] for one in model_file._other_data(chain, data_of("mine"))] == ["A", "B"]
    assert [one["name"] for one in model_file._other_data(chain, data_of("other"))] == ["B"]
    assert leakage.foreign(chain, data_of("mine")) == ["split patient other instead of patient mine"]
    assert leakage.foreign(chain, data_of("other")) == []


@pytest.mark.parametrize("teacher_split, student_split", [("train", "valid"), ("train", "test"), ("valid", "test")])
def test_every_overlap_of_patients_is_refused_for_the_network_and_its_teachers(teacher_split, student_split):
    seeing, innocent = seen("A", "other", **{teacher_split: ["p"]}), seen("A", "mine")
    for network in (about(seeing), about(innocent, seeing)):
        with pytest.raises(Problem, match=f"split.* contains 1 patient and 0 images of the student's {student_split}") as caught:
            leakage.refuse_overlap(network, data_of("mine", **{student_split: ["p"]}))
        assert caught.value.code == 4
    leakage.refuse_overlap(about(seen("A", "other", valid=["p"])), data_of("mine", valid=["p"], train=["p"]))


@pytest.mark.parametrize("theirs, ours, refused", [
    (("chest", ""), ("chest_2027", ""), True), (("mura", "mura"), ("mura_abnormal", "mura"), True),
    (("messidor", "messidor"), ("messidor2", "messidor"), True), (("chest", ""), ("eyepacs", "eyepacs"), False),
    (("eyepacs", "eyepacs"), ("eyepacs", ""), False), (("synthetic", "synthetic"), ("mura", "mura"), False)])
def test_names_of_patients_are_compared_within_their_space_whatever_the_data_set_is_called(theirs, ours, refused):
    network = about(seen(theirs[0], "other", theirs[1], train=["10", "11"]))
    dataset = data_of("mine", *ours, test=["10", "11", "12"])
    assert leakage.seen_by(network, dataset.index, hashes(1, 2, 3).numpy()).tolist() == [refused, refused, False]
    if refused:
        with pytest.raises(Problem, match="its train split contains 2 patients and 0 images of the student's test split"):
            leakage.refuse_overlap(network, dataset)
    else:
        leakage.refuse_overlap(network, dataset)


def test_a_site_separates_patients_and_the_message_names_it():
    network = about(seen("chest", "other", train=["10", "11", "A::12"]))
    with pytest.raises(Problem) as caught:
        leakage.refuse_overlap(network, data_of("mine", "ward", test=["10", "11"]))
    assert str(caught.value).endswith(
        "If these patients of 'ward' are not those of 'chest', because two hospitals use the same names, set --site NAME.")
    ward = data_of("mine", "ward", test=["B::10", "B::11", "B::12"])
    with pytest.raises(Problem, match="contains 2 patients and"):  # the site of 10 and 11 is unknown
        leakage.refuse_overlap(network, ward)
    ward.settings.site = "B"
    leakage.refuse_overlap(network, ward)
    with pytest.raises(Problem, match="contains 1 patient and"):
        leakage.refuse_overlap(network, data_of("mine", "ward", test=["A::12"]))


def test_a_site_is_no_cure_where_files_are_shared_or_the_data_set_is_published():
    network = about(seen("chest", "other", files=(1, 2), train=["10"]), seen("mura", "m", "mura", train=["patient1"]))
    for dataset, words in ((data_of("mine", test=["10"], files=(1,)), "1 patient and 1 image of"),
                           (data_of("mine", test=["x"], files=(1, 2, 3)), "0 patients and 2 images of"),
                           (data_of("mine", space="mura", test=["patient1"]), "the train split of 'mura', which it or one of")):
        with pytest.raises(Problem, match=words) as caught:
            leakage.refuse_overlap(network, dataset)
        assert "--site" not in str(caught.value) and "--tag NAME" in str(caught.value)


def test_images_of_unknown_patients_are_not_compared_by_their_names():
    dataset = data_of("mine", test=["ill/0001.png", "ill/0002.png"], files=(7,))
    network = about(seen("A", "other", train=["ill/0001.png"]))
    leakage.refuse_overlap(network, dataset)
    assert not leakage.seen_by(network, dataset.index, hashes(5, 7).numpy()).any()
    network = about(seen("A", "other", files=(7,)))
    assert leakage.seen_by(network, dataset.index, hashes(5, 7).numpy()).tolist() == [False, True]
    with pytest.raises(Problem, match="0 patients and 1 image of"):
        leakage.refuse_overlap(network, dataset)


def test_exactly_the_same_split_is_accepted_but_not_what_its_teachers_have_seen():
    same = seen("elsewhere", "mine", train=["p"])
    leakage.refuse_overlap(about(same), data_of("mine", test=["p"]))
    with pytest.raises(Problem, match="the valid|the validation split of 'B', which it or one of its own teachers has used, contains"):
        leakage.refuse_overlap(about(same, seen("B", "b", valid=["q"])), data_of("mine", test=["q"]))
    assert not leakage.seen_by(Trained(None, None, ""), data_of("mine", test=["p"]).index, hashes(1).numpy()).any()


def test_only_known_patients_are_stored_sorted_and_once():
    dataset = data_of("mine", train=["q", "p", "p", "x/1.png"], valid=["x/2.png"])
    assert model_file.known_patients(dataset, "train") == ["p", "q"] and model_file.known_patients(dataset, "valid") == []


def test_patients_of_an_archive_whose_names_have_another_space_are_kept_apart():
    pool = Pool(None, np.arange(0), {"": ["p", "q"], "eyepacs": ["10"]}, {"name": "eyepacs"})
    [entry] = model_file._of_other_spaces(pool, "", "salt")
    assert entry.keys() == model_file.INHERITED.keys() and entry["salt"] == "salt"
    assert same(entry["patients"], {"train": hashed(["10"], "salt"), "valid": hashed([], "salt")})
    network = about(seen("A", "other", train=["p", "q"]), entry)
    leakage.refuse_overlap(network, data_of("mine", test=["10"]))
    with pytest.raises(Problem, match="the train split of 'eyepacs', which it or one of its own teachers has used, contains 1 pat"):
        leakage.refuse_overlap(network, data_of("mine", "x", "eyepacs", test=["10"]))


@pytest.mark.parametrize("inherited, message", [
    ([3], "data.inherited"), ([{"name": "x"}], "data.inherited has other keys"),
    ([{key: seen("x", "s")[key] for key in model_file.INHERITED} | {"files": {"train": torch.zeros(3), "valid": torch.zeros(3)}}],
     "are not hashes"),
    ([{key: seen("x", "s")[key] for key in model_file.INHERITED} | {"patients": 3}], "patients is int"),
    ([{key: seen("x", "s")[key] for key in model_file.INHERITED} | {"space": 3}], "space is int")])
def test_a_model_whose_inheritance_is_damaged_is_refused_and_an_older_one_has_none(script, prepared, inherited, message):
    prepared([("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1"])])
    file = DATA / "teacher/kdtiny/seed0/model.pt"
    content = torch.load(file, weights_only=True)
    content["data"]["inherited"] = inherited
    torch.save(content, file)
    with pytest.raises(Problem, match=message) as caught:
        model_file.load(file)
    assert caught.value.code == 4
    del content["data"]["inherited"]
    torch.save(content, file)
    assert model_file.load(file).about["data"]["inherited"] == []


@pytest.mark.parametrize("name, space", [
    ("mura", "mura"), ("mura_abnormal", "mura"), ("synthetic", "synthetic"), ("eyepacs", "eyepacs"), ("chest", ""),
    ("aptos", "aptos"), ("messidor2", "messidor"), ("mura_of_my_hospital", "")])
def test_an_older_model_has_the_space_of_its_data_set_and_no_paths_for_patients(script, prepared, name, space):
    prepared([("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1"])])
    file = DATA / "teacher/kdtiny/seed0/model.pt"
    content = torch.load(file, weights_only=True)
    assert content["data"]["space"] == "synthetic"
    patients = {"train": ["10", "P.7", "ill/0001.png", "b/c.JPEG", "x.tif"], "valid": ["a.bmp"]}
    older = {key: value for key, value in content["data"].items() if key not in ("space", "salt", "test_files")}
    older |= {"name": name, "patients": patients}
    older["inherited"] = [{"name": name, "patients": patients, "files": older["files"]}]
    torch.save(content | {"data": older}, file)
    data = model_file.load(file).about["data"]
    for one in (data, *data["inherited"]):
        assert one["space"] == space
        assert same(one["patients"], {"train": hashed(["10", "P.7"], one["salt"]), "valid": hashed([], one["salt"])})
    content["data"]["patients"] = patients
    del content["data"]["salt"]
    torch.save(content, file)
    data = model_file.load(file).about["data"]  # only files without a space have lost names of images
    assert same(data["patients"], {part: hashed(own, data["salt"]) for part, own in patients.items()})


def hospital(picture_tree, place, first=0):
    """Write 32 images of 16 patients below `place`; equal places have equal images."""
    root = picture_tree(place, {"images": 32}, size=(20, 24 + first))
    rows = [(f"images/image{k}.png", "ab"[k // 2 % 2], f"MRN{k // 2}") for k in range(32)]
    write_table(root, rows)
    return root


def test_patients_of_a_teacher_are_known_in_a_folder_of_another_name_until_a_site_separates_them(script, picture_tree):
    first, next_year = hospital(picture_tree, "chest"), hospital(picture_tree, "chest_2027", 3)
    data = ["--dataset", "folder", "--data-dir"]
    code, out = script("train_teacher", ["--model", "kdwide", *TINY, *data, first])
    assert code == 0, out
    run = Path("runs/chest-patient-32/teacher/kdwide/seed0")
    stored = torch.load(run / "model.pt", weights_only=True)["data"]
    of_both = torch.cat([*stored["patients"].values()])
    assert stored["space"] == "" and 0 < are_among_hashed([f"MRN{k}" for k in range(16)], of_both, stored["salt"]).sum() == len(of_both)
    words = [*PAIR, "--mode", "normal", "--teacher-checkpoint", run / "model.pt", "--allow-foreign-teacher", *data, next_year]
    code, out = script("distill", words)  # with the same seed, every patient is in the same split as before
    assert code == 0, out
    code, out = script("distill", [*words, "--split-seed", "1"])
    assert code == 4 and "0 images of the student's" in out and "set --site NAME" in out
    code, out = script("distill", [*words, "--split-seed", "1", "--site", "B"])
    assert code == 0, out
    code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", next_year, "--device", "cpu"])
    known = 2 * len(of_both)
    assert code == 0 and f"warning: {known} of 32 images were seen in training" in out
    code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", next_year, "--site", "B", "--device", "cpu"])
    assert code == 0 and "warning" not in out


def test_equal_file_names_of_two_hospitals_are_not_the_same_patients(script, picture_tree):
    one, other = (picture_tree(f"{name}/images", {"ill": 20, "well": 20}, size=(20, 24 + k)) for k, name in enumerate("AB"))
    data = ["--dataset", "folder", "--data-dir"]
    assert script("train_teacher", ["--model", "kdwide", *TINY, *data, one])[0] == 0
    run = Path("runs/images-patient-32/teacher/kdwide/seed0")
    assert torch.load(run / "model.pt", weights_only=True)["data"]["patients"]["train"].shape == (0, 32)
    code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", other, "--device", "cpu"])
    assert code == 0 and "warning" not in out
    code, out = script("distill", [*PAIR, "--mode", "normal", "--teacher-checkpoint", run / "model.pt", "--split-seed", "3",
                                   "--allow-foreign-teacher", *data, other, "--out", "others"])
    assert code == 0, out
