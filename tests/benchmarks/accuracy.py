"""Does speed cost accuracy? bf16 against float32, stored logits against the live teacher, over seeds. Run by hand:

    python tests/benchmarks/accuracy.py [--seeds 5] [--out FOLDER]

Each seed trains a teacher and a student of it in each precision, and each student once more from the live teacher. Prints the
differences of test accuracy in points with their 95 % intervals (`kd.results.evidence.difference`). Killed, it goes on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import distill  # noqa: E402
import kd  # noqa: E402, F401  (first of all: it sets up the allocator)
from kd.checkpoint import load  # noqa: E402
from kd.results.evidence import difference  # noqa: E402
from kd.results.report import read_predictions  # noqa: E402

PAIR = ("resnet34", "resnet18")
COMMON = ["--config", str(ROOT / "configs/demo.toml"), "--teacher", PAIR[0], "--student", PAIR[1], "--mode", "normal",
          "--image-size", "32", "--epochs", "5"]
DATA = "synthetic-patient-32"


def student(out, amp, seed, live=False):
    """The folder of one student's run, trained where it is not there yet."""
    more = ["--no-stored-logits", "--tag", "live"] if live else []
    distill.main([*COMMON, "--out", str(out / amp), "--cache-dir", str(out / "cache"), "--amp", amp, "--seed", str(seed), *more])
    return out / amp / DATA / ("normal-live" if live else "normal") / "-".join(PAIR) / f"seed{seed}"


def compare(name, first, second):
    """Print how far two lists of runs lie apart."""
    one, other = ([read_predictions(run) for run in runs] for runs in (first, second))
    gap = difference(*(np.stack([found.right for found in side]) for side in (one, other)), one[0].patients)
    means = " against ".join(f"{np.mean([found.right.mean() for found in side]):.4f}" for side in (one, other))
    same = sum(all((a == b).all() for a, b in zip(*(load(run / "model.pt")["state_dict"].values() for run in pair)))
               for pair in zip(first, second))
    print(f"{name}: {means}; difference {100 * gap['mean']:+.2f} points [{100 * gap['low']:+.2f}, {100 * gap['high']:+.2f}]; "
          f"{same} of {len(first)} pairs have the same weights", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmark-accuracy"))
    options = parser.parse_args()
    runs = {(amp, live): [student(options.out, amp, seed, live) for seed in range(options.seeds)]
            for amp in ("bf16", "off") for live in (False, True)}
    images = len(read_predictions(runs["off", False][0]).labels)
    print(f"{PAIR[1]} <- {PAIR[0]}, {DATA}, {options.seeds} seeds, {images} test images")
    compare("bf16 against float32, stored logits", runs["bf16", False], runs["off", False])
    compare("stored against live, bf16", runs["bf16", False], runs["bf16", True])
    compare("stored against live, float32", runs["off", False], runs["off", True])


if __name__ == "__main__":
    main()
