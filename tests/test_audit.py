"""Findings of --check-data.

Sound sets pass. Each kind of fault is counted and ends with exit code 2.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd.data import audit, folder


def write_csv(root, rows):
    (root / "images.csv").write_text("path,label,patient,split\n" + "\n".join(rows) + "\n")


def test_a_sound_set_has_no_problems(script, picture_tree):
    root = picture_tree("set", {"train/a": 3, "train/b": 2, "test/a": 1})
    Image.fromarray(np.full((5, 9), 3000, np.uint16)).save(root / "train/a/deep.png")
    code, out = script("evaluate", ["--check-data", "--dataset", "folder", "--data-dir", root])
    result = json.loads(Path("runs/check-set.json").read_text())
    assert code == 0 and "no faults found" in out and result["problems"] == []
    assert result["counts"] == {"a": {"train": 4, "test": 1}, "b": {"train": 2}} and result["bits"] == {"8": 6, "16": 1}


def test_each_fault_is_counted_and_ends_with_exit_code_2(script, picture_tree):
    root = picture_tree("set", {"a": 3, "b": 3})
    for number, file in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (8 + number, 8), (number, 0, 0)).save(file)
    (root / "a/image0.png").write_bytes(b"no image")
    (root / "b/image1.png").write_bytes((root / "a/image1.png").read_bytes())
    write_csv(root, [f"{name}/image{k}.png,{name},p{k}{name},{'train' if k else 'test'}" for name in "ab" for k in range(2)]
              + ["a/image2.png,a,p2,train", "b/image2.png,b,p2,train"])
    result = audit.audit(folder.read(str(root)))
    assert result["copies"] == 2 and not result["copies_across_parts"] and len(result["copies_that_disagree"]) == 1
    assert result["patients_with_several_classes"] == 1
    assert len(result["unreadable"]) == 1 and result["modes"] == {"RGB": 5}
    write_csv(root, ["a/image0.png,a,p0,train", "a/image1.png,a,p1,train", "b/image1.png,b,p9,test", "b/image2.png,b,p2,test"])
    code, out = script("evaluate", ["--check-data", "--dataset", "folder", "--data-dir", root])
    line = out.splitlines()[-1]
    assert code == 2 and "1 file cannot be read: a/image0.png" in line
    assert "1 group of identical files is in more than one split: a/image1.png = b/image1.png" in line


@pytest.mark.parametrize("whole", [True, False])
def test_mura_is_counted_against_the_official_figures(monkeypatch, tmp_path, script, whole):
    root, official = tmp_path / "MURA-v1.1", {}
    for number, body in enumerate(audit.BODY_PARTS):
        official[body] = (2, 1)
        for k, part in ((0, "train"), (1, "train"), (2, "valid")):
            # In the faulty set, one patient of the wrist is in both splits.
            patient = f"patient{number}{part if whole or body != 'wrist' else ''}"
            place = root / part / f"XR_{body.upper()}" / patient / f"study{k}_positive"
            place.mkdir(parents=True)
            Image.new("L", (8, 8), 10 * number + k).save(place / "image1.png")
    if not whole:
        official["hand"] = (5, 1)
    monkeypatch.setattr(audit, "OFFICIAL", official)
    code, out = script("evaluate", ["--check-data", "--dataset", "mura", "--data-dir", root])
    assert code == (0 if whole else 2) and ("counts: equal to the official counts" in out) == whole
    assert whole or ("hand train: 2 instead of 5" in out.splitlines()[-1] and "1 patient is in more than one split: patient6" in out)
