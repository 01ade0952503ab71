"""Files that are identical, byte for byte: one of each is kept, and which one is the same everywhere."""

import os
import shutil

import pytest
from conftest import write_table

from kd.data import duplicates
from kd.data.duplicates import identical_files, without_copies
from kd.data.index import Index, Sample
from kd.data.readers import folder
from kd.data.splits import split as draw
from kd.system.errors import Problem


@pytest.fixture
def write(tmp_path):
    """Return write({path: content}, ...), which writes files below the folder `set`."""
    def make(files):
        for path, content in files.items():
            (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / path).write_bytes(content)
        return tmp_path / "set"
    return make


@pytest.fixture
def index_of(write):
    """Return index_of((path, content, label, patient, split), ...); without a patient, it is the path."""
    def make(*rows, **options):
        root = write({path: content for path, content, *_ in rows})
        samples = []
        for path, _, label, patient, split in rows:
            samples.append(Sample(path, label, patient or path, patient or path, split))
        return Index("set", ("a", "b"), tuple(samples), root=root, **options)
    return make


def paths(index):
    return [sample.path for sample in index.samples]


def test_of_identical_files_one_is_kept_and_one_note_counts_the_others(index_of):
    index = index_of(("a/1.png", b"one", 0, "p", None), ("a/2.png", b"two", 0, "p", None), ("a/3.png", b"one", 0, "p", None),
                     ("b/4.png", b"four", 1, "q", None), ("b/5.png", b"four", 1, "r", None), ("b/6.png", b"four", 1, None, None))
    kept = without_copies(index)
    assert paths(kept) == ["a/1.png", "a/2.png", "b/4.png"]
    assert kept.notes == ("3 images were excluded: identical to another, 1 of them of another patient.",)
    assert without_copies(kept) is kept
    one = without_copies(index.only([0, 2]))
    assert paths(one) == ["a/1.png"] and one.notes == ("1 image was excluded: identical to another.",)


@pytest.mark.parametrize("first, second", [
    (("z", 0, None, "test"), ("a", 0, "p", "valid")), (("z", 0, None, "valid"), ("a", 0, "p", "train")),
    (("z", 0, None, "valid"), ("a", 0, "p", None)), (("z", 0, None, "train"), ("a", -1, "p", None)),
    (("z", -1, None, "test"), ("a", 0, "p", "train")), (("z", 0, "p", None), ("a", 0, None, None)),
    (("z", -1, "p", None), ("a", -1, None, None)), (("image2", 0, None, None), ("image10", 0, None, None))])
def test_the_kept_file_is_the_first_in_a_fixed_order(index_of, first, second):
    for pair in ((first, second), (second, first)):
        rows = [(f"{name}.png", b"same", label, patient, split) for name, label, patient, split in pair]
        assert paths(without_copies(index_of(*rows))) == [f"{first[0]}.png"]


def test_the_order_does_not_depend_on_times(index_of):
    index = index_of(("a.png", b"same", 0, None, None), ("b.png", b"same", 0, None, None))
    for newer in ("a.png", "b.png"):
        os.utime(index.root / newer, (2e9, 2e9))
        assert paths(without_copies(index)) == ["a.png"]


def test_identical_files_with_contrary_labels_are_refused_with_a_cure(index_of):
    index = index_of(("a/1.png", b"one", 0, "p", None), ("b/1.png", b"one", 1, "p", None), ("a/2.png", b"two", 0, "p", None),
                     ("b/2.png", b"two", 1, "p", None), ("c/2.png", b"two", -1, "p", None), ("a/3.png", b"ok", 0, "p", None))
    with pytest.raises(Problem) as caught:
        without_copies(index)
    assert str(caught.value) == (
        f"Identical files in {index.root} have different labels: a/1.png (label a) = b/1.png (label b), a/2.png (label a) ="
        " b/2.png (label b). Set the label of all but one of each to 'drop' in --errata FILE (with header image,label).")
    graded = Index("messidor", ("0", "1"), index.samples, "messidor", index.root, graded=True)
    with pytest.raises(Problem, match="with header image,grade"):
        without_copies(graded)


def test_a_copy_without_a_label_is_no_contradiction(index_of):
    index = without_copies(index_of(("a.png", b"one", -1, None, None), ("b.png", b"one", 1, None, None)))
    assert paths(index) == ["b.png"] and index.samples[0].label == 1


def test_further_columns_stay_with_their_rows(index_of):
    index = index_of(("a.png", b"one", 0, None, None), ("b.png", b"one", 0, None, None), ("c.png", b"c", 1, None, None),
                     extra={"age": ("1", "2", "3")})
    assert without_copies(index).extra == {"age": ("1", "3")}


def test_drawings_have_no_copies():
    index = Index("synthetic", ("a",), (Sample("x", 0, "p", "s"),), draw=lambda row: None)
    assert without_copies(index) is index


def test_files_that_differ_anywhere_are_not_identical(write):
    base = bytes(range(256)) * 200  # 51,200 bytes
    files = {"base": base, "copy": base, "other": base[:-1]}
    for place in (0, 1000, 20000, 25600, 29695, 30000, 47104, 51199):
        files[f"at{place}"] = base[:place] + b"!" + base[place + 1:]
    assert base[0] != ord("!") and len(set(files.values())) == len(files) - 1
    root = write(files)
    assert identical_files(root, list(files)) == [[0, 1]]
    assert identical_files(root, ["at0", "copy", "other", "base", "absent", "at0"]) == [[0, 5], [1, 3]]


def test_only_files_that_are_equal_in_the_middle_and_at_the_end_are_read_completely(write, monkeypatch):
    base = b"header" + bytes(100_000)
    files = {"a": base, "b": base, "shorter": base[:-1], "middle": base[:50_003] + b"x" + base[50_004:], "end": base[:-1] + b"x"}
    root = write(files)
    read, opened = [], []
    digest = duplicates.hashlib.file_digest
    monkeypatch.setattr(duplicates.hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    monkeypatch.setattr(duplicates, "open", lambda file, mode: opened.append(file.name) or open(file, mode), raising=False)
    assert identical_files(root, list(files)) == [[0, 1]]
    assert sorted(read) == [str(root / "a"), str(root / "b")]
    assert sorted(opened) == ["a", "a", "b", "b", "end", "middle"]


def test_what_is_no_readable_file_is_no_copy(write, tmp_path):
    root = write({"empty1": b"", "empty2": b"", "a": b"x", "b": b"x"})
    (root / "gone1").symlink_to("nowhere")
    (root / "gone2").symlink_to("nowhere")
    os.mkfifo(root / "pipe1")
    os.mkfifo(root / "pipe2")
    (root / "folder1").mkdir()
    (root / "folder2").mkdir()
    names = sorted(os.listdir(root))
    assert identical_files(root, names) == [[names.index("a"), names.index("b")]]


def test_a_copy_does_not_hide_the_patient_of_the_file(picture_tree):
    root = picture_tree("set", {"x": 12})
    shutil.copy(root / "x/image0.png", root / "x/copy.png")
    rows = [(f"x/image{k}.png", "ab"[k % 2], f"p{k // 4}", "") for k in range(12)]
    write_table(root, [*rows, ("x/copy.png", "a", "", "test")], "path,label,patient,split")
    index = duplicates.without_copies(folder.read(str(root)))
    [kept] = [sample for sample in index.samples if sample.split == "test"]
    assert kept.path == "x/copy.png" and kept.patient == "p0"
    chosen = draw(index, "patient", 0, (None, None, None))
    assert "p0" not in {index.samples[row].patient for row in chosen.train}


def test_patients_with_an_identical_file_are_on_one_side(picture_tree):
    root = picture_tree("set", {"x": 60})
    for first, second in ((0, 13), (14, 29), (30, 41)):
        shutil.copy(root / f"x/image{first}.png", root / f"x/image{second}.png")
    write_table(root, [(f"x/image{k}.png", "a", f"p{k // 4}") for k in range(60)] + [], "path,label,patient")
    text = (root / "images.csv").read_text().splitlines()
    (root / "images.csv").write_text("\n".join([text[0], *(line.replace(",a,", f",{'ab'[k % 4 // 3]},") for k, line in enumerate(text[1:]))]))
    index = duplicates.without_copies(folder.read(str(root)))
    for seed in range(20):
        sides = {}
        for name, chosen in draw(index, "patient", seed, (None, None, None)).items():
            for row in chosen:
                sides.setdefault(index.samples[row].patient, set()).add(name)
        assert sides["p0"] == sides["p3"] == sides["p7"] and sides["p10"] == sides["p7"] and len(sides["p0"]) == 1
