"""Does speed cost accuracy? bf16 against float32, stored logits against the live teacher, over seeds. Run by hand:

    python tests/benchmarks/accuracy.py [--seeds 5] [--out FOLDER]

Each seed trains a teacher in each precision, a small student that fills the stored logits, then the student that is measured from
them alone, and once more from the live teacher. Prints the
differences of test accuracy in points with their 95 % intervals (`kd.reports.statistics.difference`). Killed, it goes on.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import distill  # noqa: E402
import kd  # noqa: E402, F401  (first of all: it sets up the allocator)
from kd.reports.predictions import read_predictions  # noqa: E402
from kd.reports.statistics import difference  # noqa: E402
from kd.system.checkpoint import load  # noqa: E402

PAIR, FILLER = ("resnet34", "resnet18"), "resnet10t"
COMMON = ["--config", str(ROOT / "configs/demo.toml"), "--teacher", PAIR[0], "--student", PAIR[1], "--mode", "normal",
          "--image-size", "32", "--epochs", "5"]
DATA = "synthetic-patient-32"


def student(out, amp, seed, kind):
    """The folder of one student's run, trained where it is not there yet; `kind` is live or stored."""
    common = [*COMMON, "--out", str(out / amp), "--cache-dir", str(out / "cache"), "--amp", amp, "--seed", str(seed)]
    if kind == "stored":
        distill.main([*common, "--student", FILLER, "--tag", "fill"])
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        distill.main([*common, "--tag", kind, *(["--no-stored-logits"] if kind == "live" else [])])
    print(told.getvalue(), flush=True)
    words = told.getvalue()
    assert "finished before" in words or (", 0 computed" in words) == (kind == "stored"), "not as it was meant"
    return out / amp / DATA / f"normal-{kind}" / "-".join(PAIR) / f"seed{seed}"


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
    parser.add_argument("--amp", nargs="+", default=["bf16", "off"])
    parser.add_argument("--out", type=Path, default=Path("benchmark-accuracy"))
    options = parser.parse_args()
    runs = {(amp, kind): [student(options.out, amp, seed, kind) for seed in range(options.seeds)]
            for amp in options.amp for kind in ("stored", "live")}
    if len(options.amp) < 2:
        return
    images = len(read_predictions(runs["off", "live"][0]).labels)
    print(f"{PAIR[1]} <- {PAIR[0]}, {DATA}, {options.seeds} seeds, {images} test images")
    compare("bf16 against float32, stored logits", runs["bf16", "stored"], runs["off", "stored"])
    compare("stored against live, bf16", runs["bf16", "stored"], runs["bf16", "live"])
    compare("stored against live, float32", runs["off", "stored"], runs["off", "live"])


if __name__ == "__main__":
    main()
