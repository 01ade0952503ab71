"""What README.md promises: its length, its links, and the three changes that extend the program."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY
from PIL import Image

README = (ROOT / "README.md").read_text()
DOCUMENTS = ["README.md", "configs/README.md", "kd/README.md", "kd/data/README.md", "kd/studies/README.md",
             "tests/README.md", "tests/benchmarks/README.md"]


def diffs():
    """Return the text of each ```diff block of README.md."""
    return re.findall(r"^```diff\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def extended(tmp_path):
    """A copy of the project to which the three changes of README.md have been applied."""
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copytree(ROOT / "kd", copy / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "distill.py", copy)
    for number, text in enumerate(diffs()):
        undone = subprocess.run(["git", "apply", "--reverse", "--check", "-"], input=text, text=True, cwd=copy, capture_output=True)
        if undone.returncode == 0:  # somebody has applied it to the project itself
            continue
        applied = subprocess.run(["git", "apply", "--verbose", "-"], input=text, text=True, cwd=copy, capture_output=True)
        assert applied.returncode == 0, (number, applied.stderr)
    return copy


def test_the_readme_is_short_and_its_lines_fit_a_screen():
    lines = README.splitlines()
    assert len(lines) <= 180
    assert not [line for line in lines if len(line) > 100]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name):
    document = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), target


def test_the_three_changes_of_the_readme_apply(extended):
    assert len(diffs()) == 3
    assert (extended / "kd/data/readers/chest.py").is_file() and '"early"' in (extended / "kd/methods.py").read_text()


@pytest.mark.slow
def test_a_run_uses_the_added_mode_loss_and_data_set(extended, tmp_path):
    for label, name in (("NORMAL", "NORMAL2-IM"), ("VIRUS", "person")):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(24):
            grey = 20 if label == "NORMAL" else 140  # no two files are equal, which would join patients
            Image.new("L", (40, 40), grey + 4 * number).save(tmp_path / "set" / label / f"{name}{number // 2}_{number}.jpeg")
    command = [sys.executable, "distill.py", "--mode", "early", "--teacher", "resnet18", "--student", "resnet18", *TINY,
               "--dataset", "chest", "--data-dir", str(tmp_path / "set"), "--knowledge", "cosine", "--epochs", "3",
               "--max-steps", "12"]
    done = subprocess.run(command, cwd=extended, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((extended / "runs").glob("chest-*/early/*/seed0/report.json"))
