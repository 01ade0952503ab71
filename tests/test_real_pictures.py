"""Training on real radiographs, if a copy is beside the project. Run by hand with -m slow."""

from pathlib import Path

import pytest
from conftest import ROOT

from kd.reports import report as reports

CHEST = ROOT.parent / "shared" / "real" / "chest"


@pytest.mark.slow
@pytest.mark.skipif(not CHEST.is_dir(), reason="no real images beside the project")
def test_a_student_learns_from_real_images(script):
    code, out = script("distill", ["--teacher", "resnet18", "--student", "resnet18", "--mode", "normal", "--dataset", "folder",
                                   "--data-dir", CHEST, "--image-size", "96", "--no-pretrained", "--epochs", "8"])
    report = reports.read(Path("runs/chest-patient-96/normal/resnet18-resnet18/seed0"))
    assert code == 0 and report["data"]["channels"] == 1 and report["data"]["overlaps"] == {"patients": 0, "files": 0}
    assert report["data"]["parts"]["test"] == 180 and report["results"]["best"]["test_accuracy"] > 0.65
