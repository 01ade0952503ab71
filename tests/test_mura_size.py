"""A tree with the official image counts of MURA, but tiny images.

The test checks what is found, which splits result and how long a start takes.
"""

import io
import time

import numpy as np
import pytest
from PIL import Image

from kd.config.settings import Data
from kd.data.check.audit import audit
from kd.data.dataset import open_dataset, read_index

COUNTS = {"train": dict(ELBOW=4931, FINGER=5106, FOREARM=1825, HAND=5543, HUMERUS=1272, SHOULDER=8379, WRIST=9752),
          "valid": dict(ELBOW=465, FINGER=461, FOREARM=301, HAND=460, HUMERUS=288, SHOULDER=563, WRIST=659)}


def grow(root):
    """Write three images per study and 40 hidden files.

    Some patients have studies of two body parts. No two images are identical.
    """
    patient, number = 0, 0
    for part, counts in COUNTS.items():
        for body, count in counts.items():
            for first in range(0, count, 3):
                patient += 1
                # Every ninth patient already has a study of another body part.
                own = patient - 700 if part == "train" and patient % 9 == 0 and patient > 700 else patient
                finding = ("negative", "positive")[patient % 2]
                study = root / part / f"XR_{body}" / f"patient{own:05d}" / f"study{patient}_{finding}"
                study.mkdir(parents=True)
                for image in range(first, min(first + 3, count)):
                    number += 1
                    content = io.BytesIO()
                    Image.frombytes("L", (4, 4), number.to_bytes(16, "big")).save(content, "PNG")
                    (study / f"image{image - first + 1}.png").write_bytes(content.getvalue())
                if patient % 333 == 0:
                    (study / "._image1.png").write_bytes(b"\0\5\x16\7")
    return root


@pytest.mark.slow
def test_a_tree_of_muras_size(tmp_path, capsys):
    grow(tmp_path / "download" / "MURA-v1.1" / "MURA-v1.1")

    def start(split):
        begun = time.monotonic()
        data = Data(data_dir=str(tmp_path / "download"), split=split, image_size=16)
        dataset = open_dataset(data, read_index(data))
        return dataset, time.monotonic() - begun

    (patient, first), (again, second), (thesis, _) = start("patient"), start("patient"), start("thesis")
    parts = [sample.split for sample in patient.index.samples]
    assert (parts.count("train"), parts.count("test"), patient.index.skipped) == (36808, 3197, 40)
    found = patient.describe()
    assert found["parts"] == {"train": 15407, "valid": 1750, "test": 1715} and found["overlaps"] == {"patients": 0, "files": 0}
    assert found["per_class"] == {"train": [2201] * 7, "valid": [250] * 7, "test": [245] * 7}
    assert found["distinct_images"]["train"] < 15407 and again.split_hash == patient.split_hash
    leaking = thesis.describe()
    assert leaking["parts"] == {"train": 13866, "valid": 1575, "test": 1715}
    assert leaking["leaks"] and leaking["overlaps"]["patients"] > 1000 and leaking["overlaps"]["files"] > 100
    assert np.bincount(thesis.index.labels[thesis.splits.test]).min() > 190
    checked = audit(patient.index)
    assert checked["official"] == {} and checked["problems"] == []
    assert checked["hidden_files"] == 40 and checked["modes"] == {"L": 40005}
    with capsys.disabled():
        print(f"\nMURA's size: first start {first:.1f} s, second {second:.1f} s; patient: {found['patients']}, distinct "
              f"{found['distinct_images']}; thesis: {leaking['patients']}, overlaps {leaking['overlaps']}")
