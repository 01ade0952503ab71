"""Compare what `--balance` and `--balance-knowledge` do to the recall of rare classes.

Run by hand:

    python tests/benchmarks/balance.py [--seeds 0 1 2] [--epochs 10] [--out FOLDER]

The script draws three classes of the synthetic set in the proportion 100 : 10 : 3 (training and
validation) with a balanced test split, and writes them as a folder of images with a table of patients
and splits. For each seed and way of balancing it trains a teacher, the student on labels only, and
the student with the teacher. It prints the recall of each class and differences between the ways,
with 95 % intervals over patients and seeds. With --out, an interrupted benchmark continues;
otherwise everything is in a temporary folder.
"""

import argparse
import contextlib
import csv
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import distill  # noqa: E402
import kd  # noqa: E402, F401  (imported first: it sets up the allocator)
import train_teacher  # noqa: E402
from kd.data.readers import synthetic  # noqa: E402
from kd.reports.predictions import read_predictions  # noqa: E402
from kd.reports.statistics import compare, estimate, pair  # noqa: E402

TEACHER, STUDENT = "resnet14t", "resnet10t"
CLASSES = ("forearm", "elbow", "wrist")
# Patients with four images each: 500 : 52 : 16 training images.
PATIENTS = {"train": (125, 13, 4), "valid": (50, 5, 2), "test": (30, 30, 30)}
BALANCES = {"none": [], "draw": ["--balance", "draw"], "weights": ["--balance", "weights"],
            "weights, knowledge too": ["--balance", "weights", "--balance-knowledge"]}
LAST = "weights, knowledge too"
DIFFERENCES = [("alone", "weights", "none"), ("alone", "draw", "none"), ("taught", "weights", "none"),
               ("taught", LAST, "none"), ("taught", "draw", "none"), ("taught", LAST, "weights"), ("taught", LAST, "draw")]


def write_images(root):
    """Write the images of all splits, and their table."""
    rows = []
    for place, name in enumerate(CLASSES):
        label, number = synthetic.CLASSES.index(name), 0
        for split, counts in PATIENTS.items():
            for patient in range(number, number + counts[place]):
                first = (patient * len(synthetic.CLASSES) + label) * synthetic.VIEWS_PER_PATIENT
                for view in range(synthetic.VIEWS_PER_PATIENT):
                    path = Path(name) / f"{name}{patient:03d}" / f"image{view}.png"
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(synthetic.draw(first + view, seed=0)).save(root / path)
                    rows.append((path.as_posix(), name, f"{name}{patient:03d}", split))
            number += counts[place]
    with (root / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient", "split"), *rows])


def train(out, data, balance, seed, epochs):
    """Train what is missing for one way of balancing and one seed; return {network: folder}."""
    tag = "".join(word.strip("-") for word in BALANCES[balance])
    teacher_tag = tag.removesuffix("balance-knowledge")
    common = ["--dataset", "folder", "--data-dir", str(data), "--image-size", "32", "--no-pretrained", "--device", "cpu",
              "--epochs", str(epochs), "--batch-size", "32", "--lr", "1e-3", "--schedule", "cosine", "--out", str(out),
              "--cache-dir", str(out / "cache"), "--seed", str(seed)]
    teachers = [word for word in BALANCES[balance] if word != "--balance-knowledge"]
    top = out / f"{data.name}-patient-32"
    roots = {name: top / (f"teacher-{teacher_tag}" if teacher_tag else "teacher") / name / f"seed{seed}" for name in (TEACHER, STUDENT)}
    with contextlib.redirect_stdout(io.StringIO()):
        train_teacher.main([*common, *teachers, "--model", TEACHER, STUDENT, "--tag", teacher_tag])
        distill.main([*common, *BALANCES[balance], "--mode", "normal", "--teacher", TEACHER, "--student", STUDENT,
                      "--teacher-checkpoint", str(roots[TEACHER] / "model.pt"), "--tag", tag])
    taught = top / (f"normal-{tag}" if tag else "normal") / f"{TEACHER}-{STUDENT}" / f"seed{seed}"
    return {"teacher": roots[TEACHER], "alone": roots[STUDENT], "taught": taught}


def columns(labels):
    """Yield (name, which images) of each column: the classes, and all images of the balanced split."""
    names = sorted(CLASSES)
    for name in CLASSES:
        yield name, labels == names.index(name)
    yield "mean", labels >= 0


def points(value, low, high, sign=""):
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def recall(found):
    """Return the recalls of all columns as text.

    The interval is that of the difference between right and wrong images: recall = (1 + difference) / 2.
    """
    right = np.stack([one.right for one in found])
    texts = []
    for _, chosen in columns(found[0].labels):
        compared = compare(right[:, chosen], ~right[:, chosen], found[0].clusters[chosen])
        low, high = estimate(compared).interval
        texts.append(points(right[:, chosen].mean(), (1 + low) / 2, (1 + high) / 2))
    return texts


def differences(first, second):
    """Return the differences first - second of all columns as text."""
    texts = []
    for _, chosen in columns(first[0].labels):
        sides = [dict(enumerate(one.right[chosen] for one in side)) for side in (first, second)]
        compared = pair(*sides, first[0].clusters[chosen])
        texts.append(points(compared.mean, *estimate(compared).interval, sign="+"))
    return texts


def line(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def heading(*cells):
    line(*cells)
    print("|" + "---|" * len(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder of images and runs; by default a temporary one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measure(out, options.seeds, options.epochs)


def measure(out, seeds, epochs):
    started, data = time.process_time(), out / "unbalanced"
    if not (data / "images.csv").exists():
        write_images(data)
    found = {}
    for balance in BALANCES:
        for seed in seeds:
            for network, folder in train(out, data, balance, seed, epochs).items():
                found.setdefault((network, balance), []).append(read_predictions(folder))
            print(f"{balance}, seed {seed}: {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
    names = [name for name, _ in columns(np.zeros(1))]
    print(f"{STUDENT} <- {TEACHER}, seeds {seeds}, {epochs} epochs; recall in % on {len(found['taught', 'none'][0].labels)} test images\n")
    heading("network", "--balance", *names)
    for (network, balance), runs in found.items():
        if network == "taught" or balance != LAST:
            line(network, balance, *recall(runs))
    print("\ndifferences in points\n")
    heading("network", "first minus second", *names)
    for network, first, second in DIFFERENCES:
        line(network, f"{first} minus {second}", *differences(found[network, first], found[network, second]))
    for balance in BALANCES:
        line("taught minus alone", balance, *differences(found["taught", balance], found["alone", balance]))
    print(f"\n{time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
