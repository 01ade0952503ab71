"""Compare the test accuracy of bf16 and float32, and of stored logits and the live teacher.

Run by hand:

    python tests/benchmarks/accuracy.py [--seeds 5] [--out FOLDER]

For each seed and precision, the script trains a teacher and a small student that fills the stored
logits. It then trains the measured student twice: from the stored logits only, and from the live
teacher. It prints the differences in test accuracy, in percentage points, with their 95 %
intervals (`kd.reports.statistics.difference`). After an interruption, run the same command again to
continue.
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
import kd  # noqa: E402, F401  (imported first: it sets up the allocator)
from kd.reports.predictions import read_predictions  # noqa: E402
from kd.reports.statistics import difference  # noqa: E402
from kd.system.checkpoint import load  # noqa: E402

PAIR, FILLER = ("resnet34", "resnet18"), "resnet10t"
COMMON = ["--config", str(ROOT / "configs/demo.toml"), "--teacher", PAIR[0], "--student", PAIR[1], "--mode", "normal",
          "--image-size", "32", "--epochs", "5"]
DATA = "synthetic-patient-32"


def student(out, amp, seed, kind):
    """Return the folder of one student's run; train it first if it is missing.

    `kind` is "live" or "stored".
    """
    common = [*COMMON, "--out", str(out / amp), "--cache-dir", str(out / "cache"), "--amp", amp, "--seed", str(seed)]
    if kind == "stored":
        distill.main([*common, "--student", FILLER, "--tag", "fill"])
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        distill.main([*common, "--tag", kind, *(["--no-stored-logits"] if kind == "live" else [])])
    print(output.getvalue(), flush=True)
    text = output.getvalue()
    assert "already finished" in text or (", 0 computed" in text) == (kind == "stored"), f"the logits were not {kind}"
    return out / amp / DATA / f"normal-{kind}" / "-".join(PAIR) / f"seed{seed}"


def compare(name, first, second):
    """Print the difference in test accuracy between two lists of runs.

    Also print how many pairs of runs have the same weights.
    """
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
