"""Thousands of damaged inputs.

Each leads to one clear Problem or the right result, never to a traceback, a hang or a wrong result.
"""

import contextlib
import csv
import io
import json
import os
import random
import signal
import tomllib
from pathlib import Path

import films
import numpy as np
import pytest
import torch
from conftest import DATA, ROOT, TINY, same
from PIL import Image

from kd.config import parsing
from kd.config.settings import DistillSettings, Reading
from kd.data.ranges import open_store
from kd.data.readers import folder
from kd.data.store import Store
from kd.system import checkpoint
from kd.system.errors import Problem
from kd.teachers import model_file

SECONDS = 10
WORDS = [b"NaN", b"-1", b"1e400", b"null", b"{}", b"[]", b"\0", b'"', b"9" * 30, b"true", b"\xff\xfe", b"\n", b",", b"..", b"/"]
SIZES = [pytest.param(40), pytest.param(600, marks=pytest.mark.slow)]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return `content` with one to three random changes: flipped bits, cuts, copies, other words, random bytes."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        a, b = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
        b = min(b, a + chance.choice([1, 4, 30, 10**9]))
        kind = chance.randrange(7)
        if kind <= 1 and data:
            data[min(a, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[a:b]
        elif kind == 3:
            data[a:a] = data[a:b][:5000]
        elif kind == 4:
            data[a:b] = chance.choice(WORDS)
        elif kind == 5:
            del data[a:]
        else:
            data[a:b] = chance.randbytes(b - a)
    return bytes(data)


def refused(call, *codes):
    """Return (the text of the Problem, None) or (None, the result of `call`); fail on other exceptions and on timeouts."""
    def too_long(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        return None, call()
    except Problem as problem:
        assert problem.code in codes and str(problem).strip(), problem
        return str(problem), None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def small_images():
    """Yield (name, bytes, whether a checksum protects the pixels) of small images in every format."""
    values = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    grey, colour = Image.fromarray(values[..., 0]), Image.fromarray(values)
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    real = Image.fromarray(values[..., 0] / np.float32(255))
    colour16 = films.png(values.astype(np.uint16) * 257)
    yield "colour16.png", colour16, True
    yield "white.tif", films.tiff(values[..., 0].astype(np.uint16) * 16, photometric=0), False
    yield "colour16.tif", films.tiff(values.astype(np.uint16) * 257), False
    for name, drawing, form, checked in (
            ("grey.png", grey, "PNG", True), ("colour.png", colour, "PNG", True), ("deep.png", deep, "PNG", True),
            ("palette.png", colour.convert("P"), "PNG", True), ("photo.jpg", colour, "JPEG", False),
            ("scan.tif", grey, "TIFF", False), ("deep.tif", deep, "TIFF", False), ("real.tif", real, "TIFF", False),
            ("old.bmp", grey, "BMP", False),
            ("film.gif", grey, "GIF", False), ("web.webp", colour, "WEBP", False)):
        content = io.BytesIO()
        drawing.save(content, form)
        yield name, content.getvalue(), checked


@pytest.mark.case(13)
@pytest.mark.parametrize("count", SIZES)
def test_pictures(picture_tree, injected, count):
    root = picture_tree("set", {"a": 1, "b": 1})
    chance, bad = random.Random(1), 0
    for number in range(count):
        name, content, checked = chance.choice(list(small_images()))
        file = root / "a" / name

        def decoded():
            store = Store(folder.read(str(root)), "cache", 16, "squash", 3)
            rows = np.arange(len(store.index.samples))
            store = open_store(store, "cache", rows, ("all images", rows))
            row = [sample.path for sample in store.index.samples].index(f"a/{name}")
            return store.gather(np.array([row]))

        file.write_bytes(content)
        whole = decoded()
        file.write_bytes(mutated(content, chance))
        os.utime(file, ns=(number, number))
        text, array = refused(decoded, 2)
        assert text is None or name in text
        assert text is not None or array.shape == (1, 3, 16, 16)
        assert text is not None or not checked or torch.equal(array, whole), f"{name}, number {number}: other pixels"
        bad += text is not None
        file.unlink()
    assert bad > count / 4
    injected(count)


def names(text, path):
    """Return whether a path in a table may name an image: with further folders in front, or with another extension."""
    return path == text or text.endswith("/" + path) or os.path.splitext(path)[0] == os.path.splitext(text)[0]


def listed(content):
    """Return {(path, label)} of a table, read by independent and simpler code."""
    for encoding in ("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            break
    header = text.splitlines()[0]
    separator = max(",;\t|", key=header.count)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(map(str.strip, row))]
    columns = [name.strip().lower() for name in rows[0]]
    label, path = columns.index("label"), columns.index("path")
    found = set()
    for row in rows[1:]:
        name = os.path.normpath(row[path].strip().replace("\\", "/"))
        word = row[label].strip().removesuffix(".0")
        found.add((name, "" if word.lower() in ("nan", "na", "n/a", "<na>", "null", "#n/a", "nat") else word))
    return found


@pytest.mark.case(17)
@pytest.mark.parametrize("count", SIZES)
def test_tables(picture_tree, injected, count):
    root = picture_tree("set", {"a": 6, "b": 6})
    lines = ["path,label,patient,study,split"] + [
        f"{name}/image{k}.png,{name},p{k // 2}{name},s{k},{part}" for name in "ab" for k, part in enumerate(
            ["train", "train", "valid", "valid", "test", "test"])]
    chance, bad = random.Random(2), 0
    for _ in range(count):
        content = mutated("\n".join(lines).encode(), chance)
        (root / "images.csv").write_bytes(content)
        text, index = refused(lambda: folder.read(str(root)), 2)
        bad += text is not None
        if index is not None:
            expected = listed(content)
            found = {(sample.path, index.classes[sample.label] if sample.label >= 0 else "") for sample in index.samples}
            assert len(found) == len(expected) and all(
                any(label == given and names(name, path) for name, given in expected) for path, label in found), (content, found)
            assert all((root / sample.path).is_file() for sample in index.samples)
    assert bad > count / 4
    injected(count)


@pytest.mark.case(20)
@pytest.mark.parametrize("count", SIZES)
def test_configs(injected, count, capsys):
    parsing.parse(DistillSettings, ["--dry-run"])
    texts = [capsys.readouterr().out.encode(), *(file.read_bytes() for file in (ROOT / "configs").glob("*.toml"))]
    chance, bad = random.Random(3), 0
    for number in range(count):
        as_json = number % 3 == 0
        content = json.dumps(parsing.flat(DistillSettings())).encode() if as_json else chance.choice(texts)
        file = Path("a.json" if as_json else "a.toml")
        file.write_bytes(mutated(content, chance))
        text, every = refused(lambda: parsing.parse(DistillSettings, ["--config", str(file)]), 2)
        bad += text is not None
        assert text is None or file.name in text
        for settings in every or ():
            found = json.loads(file.read_bytes()) if as_json else tomllib.loads(file.read_bytes().decode("utf-8-sig"))
            own = parsing.flat(settings)
            assert all(own[key] == value or isinstance(value, list) and own[key] in value  # a list has one value per run
                       for key, value in found.items() if key in own)
    assert bad > count / 4
    injected(count)


@pytest.fixture
def run(prepared):
    """Return the folder of a finished run."""
    prepared([("train_teacher", ["--model", "kdtiny", *TINY])])
    return DATA / "teacher/kdtiny/seed0"


@pytest.mark.case(9)
@pytest.mark.parametrize("count", SIZES)
def test_checkpoints(run, injected, count):
    content, whole = (run / "model.pt").read_bytes(), checkpoint.load(run / "model.pt")
    chance, bad = random.Random(4), 0
    for _ in range(count):
        Path("model.pt").write_bytes(mutated(content, chance))
        text, found = refused(lambda: model_file.load(Path("model.pt")), 4)
        bad += text is not None
        assert text is not None or same(found.network.module.state_dict(), whole["state_dict"])
        if text is None:
            about = {key: value for key, value in whole.items() if key != "state_dict"}
            assert same(found.about, about)
    assert bad > count / 2
    injected(count)


def places(value, path=()):
    """Yield the path of every item in nested dictionaries and lists."""
    if isinstance(value, (dict, list)) and len(value) < 500:
        for key in (value.keys() if isinstance(value, dict) else range(len(value))):
            yield (*path, key)
            yield from places(value[key], (*path, key))


def altered(value, chance, odd):
    """Return a copy in which one item is deleted or replaced by an unexpected value."""
    value = value.copy()
    path = chance.choice(list(places(value)))
    here = value
    for key in path[:-1]:
        here[key] = here[key].copy()
        here = here[key]
    if chance.random() < 0.25:
        del here[path[-1]]
    else:
        here[path[-1]] = chance.choice(odd)
    return value


@pytest.mark.case(11)
@pytest.mark.parametrize("count", SIZES)
def test_checkpoints_that_hold_other_things(run, script, injected, count):
    whole = checkpoint.load(run / "model.pt")
    odd = [None, 3, -1, 1e30, float("nan"), "", "x", [], {}, torch.zeros(3), torch.zeros(2, 2), ["a"], True, {"a": 1}]
    chance, bad = random.Random(5), 0
    for _ in range(count):
        torch.save(altered(whole, chance, odd), "model.pt")
        text, _ = refused(lambda: model_file.load(Path("model.pt")), 2, 4)
        bad += text is not None
    assert bad > count / 4
    injected(count)


@pytest.mark.case(25)
@pytest.mark.parametrize("count", SIZES)
def test_reports(run, script, injected, count):
    content = (run / "report.json").read_bytes()
    whole = json.loads(content)
    odd = [None, 3, -1, 1e30, "", "x", [], {}, ["a"], True, {"a": 1}, 0.5, 10**30]
    chance, bad = random.Random(6), 0
    for number in range(count):
        changed = json.dumps(altered(whole, chance, odd)).encode() if number % 2 else mutated(content, chance)
        (run / "report.json").write_bytes(changed)
        (run / "evaluation.json").unlink(missing_ok=True)
        text, answer = refused(lambda: script("evaluate", [run]), 2, 4)
        assert text is None  # the fixture turns a Problem into its exit code
        code, out = answer
        assert code in (0, 2, 4), out
        bad += code != 0
        if code == 0:
            found = json.loads((run / "evaluation.json").read_text())
            assert found["accuracy"] == whole["results"]["best"]["test_accuracy"]
            assert found["equals_report"] == (json.loads(changed)["results"]["best"]["test_accuracy"] == found["accuracy"]
                                              and json.loads(changed)["classification_report"] == whole["classification_report"])
        else:
            assert out.splitlines()[-1].startswith("error: ")
    assert bad > count / 4
    injected(count)


def hospital_files():
    """Return the bytes of small DICOM files of several kinds."""
    dicom_files = pytest.importorskip("dicom_files", exc_type=ImportError)
    values = (np.random.default_rng(0).random((24, 20)) * 4095).astype(np.uint16)
    colour = np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    make = dicom_files.dicom
    return [make(values, BitsStored=12), make(values, BitsStored=12, PhotometricInterpretation="MONOCHROME1"),
            make(values, BitsStored=12, WindowCenter="2000", WindowWidth="1500", RescaleSlope="2", RescaleIntercept="-1024"),
            make(values, BitsStored=12, VOILUTSequence=dicom_files.look_up(0, np.arange(4096) * 16, 16)),
            make(values, BitsStored=12, compression="1.2.840.10008.1.2.5"), make(colour), make(values.astype(np.float32))]


@pytest.mark.case(13)
@pytest.mark.parametrize("count", SIZES)
def test_dicom_files(tmp_path, injected, count):
    pytest.importorskip("pydicom")
    chance, bad, files = random.Random(7), 0, hospital_files()
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "whole.dcm").write_bytes(files[0])
    changed = tmp_path / "set" / "a" / "changed"

    def decoded():
        index = folder.read(str(tmp_path / "set"))
        rows = np.arange(len(index.samples))
        store = open_store(Store(index, "cache", 16, "squash", 1), "cache", rows, ("all images", rows))
        return [sample.path for sample in index.samples], store.gather(rows), index.notes

    for number in range(count):
        changed.write_bytes(mutated(chance.choice(files), chance))
        os.utime(changed, ns=(number, number))
        text, found = refused(decoded, 2)
        bad += text is not None
        assert text is None or "a/changed" in text
        if text is None:  # it is read, or counted as a file that is no image
            paths, images, notes = found
            assert images.shape == (len(paths), 1, 16, 16) and len(paths) in (2, 3)
            assert len(paths) == 3 or any("1 without an extension" in note for note in notes)
    assert bad > count / 8
    injected(count)


@pytest.mark.case(17)
@pytest.mark.parametrize("count", SIZES)
def test_tables_of_other_archives(picture_tree, injected, count):
    picture_tree("set", {"p": 12})
    lines = ["Image;Finding;Other;PatientID;Age"] + [
        f"p\\image{k}.png;{(1.0, 0.0, -1.0, '')[k % 4]};{k % 2};{k // 2}.0;{50 + k}" for k in range(12)]
    chance, bad = random.Random(8), 0
    options = ["path=Image", "label=Finding", "patient=PatientID"], ["path=Image", "label=Other"], ["label=Finding+Other"]
    for number in range(count):
        Path("table.csv").write_bytes(mutated("\n".join(lines).encode("cp1252"), chance))
        how = Reading(table="table.csv", columns=chance.choice(options), uncertain=chance.choice(["drop", "0", "1", None]),
                      patient_pattern=chance.choice([None, "image(.)", "(?P<patient>p.i)", "x(", "(p)|(q)"]))
        text, index = refused(lambda how=how: folder.read("set", how=how), 2)
        bad += text is not None
        if index is not None:
            assert set(index.classes) and all((index.root / sample.path).is_file() for sample in index.samples)
            assert len({sample.path for sample in index.samples}) == len(index.samples)
            assert not {"nan", "", "-1", "1.0", "0.0"} & set(index.classes)
    assert bad > count / 4
    injected(count)
