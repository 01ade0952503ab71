"""Small sets of films of two classes, and their audits."""

import json
from pathlib import Path

import numpy as np
from films import deep, film, tiff
from PIL import Image

from kd.config.settings import Data
from kd.data.check import audit
from kd.data.check.audit_text import what_is_wrong
from kd.data.readers import folder

EACH = 12  # images per class


def check(script, root, *argv):
    """Run --check-data and return (exit code, output, result)."""
    code, out = script("evaluate", ["--check-data", "--dataset", "folder", "--data-dir", root, *argv])
    return code, out, json.loads(Path(f"runs/check-{root.name}.json").read_text())


def checked(root, **how):
    how = Data(dataset="folder", **how)
    return audit.audit(folder.read(str(root), how=how), how)


def save(root, name, grey, write=None):
    """Write a film, uint8 [H, W], as PNG or by `write(path without extension, grey)`."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if write is None:
        Image.fromarray(grey).save(f"{path}.png")
    else:
        write(path, grey)


def films(root, write_a=None, write_b=None, each=EACH):
    """Write films of two classes; the files of each class may be written by a function of their own."""
    for number in range(2 * each):
        save(root, f"{'ab'[number % 2]}/{number}", film(4 * number, 64), (write_a, write_b)[number % 2])
    return root


def as_png16(path, grey):
    Image.fromarray(deep(grey, 16)).save(f"{path}.png")


def as_png12(path, grey):
    Image.fromarray(deep(grey, 12)).save(f"{path}.png")


def as_inverted_tiff(path, grey):
    Path(f"{path}.tif").write_bytes(tiff(65535 - deep(grey, 16), photometric=0))


def as_float(path, grey):
    Image.fromarray((grey / 255).astype(np.float32)).save(f"{path}.tif")


def dicom_writer(**tags):
    from dicom_files import write_dicom

    def write(path, grey):
        write_dicom(f"{path}.dcm", deep(grey, 12), **({"BitsStored": 12, "PatientID": path.name} | tags))
    return write


def kinds(lines):
    return [what_is_wrong(line) for line in lines]
