"""Compare the test accuracy of bf16 and float32, and of stored logits and the live teacher.

Run by hand:

    python tests/benchmarks/accuracy.py [--seeds 5] [--out FOLDER]
    python tests/benchmarks/accuracy.py --layers [--student NAME] [--weights FILE] [--size 64] [--epochs 10] [--seeds 3]

For each seed and precision, the script trains a teacher and a small student that fills the stored
logits. It then trains the measured student twice: from the stored logits only, and from the live
teacher. It prints the differences in test accuracy, in percentage points, with their 95 %
intervals (`kd.reports.statistics.estimate`). After an interruption, run the same command again to
continue.

`--layers` compares `--amp auto` with bf16 in every layer, as torch's autocast does it by itself, for
any student; both learn from the same teachers.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import distill  # noqa: E402
import kd  # noqa: E402, F401  (imported first: it sets up the allocator)
import train_teacher  # noqa: E402
from kd import models  # noqa: E402
from kd.reports import report as reports  # noqa: E402
from kd.reports.predictions import read_predictions  # noqa: E402
from kd.reports.statistics import estimate, pair  # noqa: E402
from kd.runs import run  # noqa: E402
from kd.system.checkpoint import load  # noqa: E402
from kd.system.devices import pick_precision  # noqa: E402

PAIR, FILLER = ("resnet34", "resnet18"), "resnet10t"
RECIPE = ["--config", str(ROOT / "configs/demo.toml"), "--image-size", "32", "--epochs", "5"]
COMMON = [*RECIPE, "--teacher", PAIR[0], "--student", PAIR[1], "--mode", "normal"]
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


def layers(options):
    """Train students under `--amp auto` and with bf16 in every layer, and compare them."""
    runs = {}
    place = ["--image-size", str(options.size), "--out", str(options.out), "--cache-dir", str(options.out / "cache")]
    for seed in range(options.seeds):
        epochs = ["--epochs", str(options.epochs)]
        train_teacher.main([*RECIPE, *place, *epochs, "--model", PAIR[0], "--seed", str(seed)])
    place += ["--epochs", str(options.student_epochs or options.epochs)]
    for arm in ("auto", "everywhere"):
        words = [*place, "--student", options.student, "--tag", arm, "--amp", "auto" if arm == "auto" else "bf16"]
        words += ["--weights", options.weights] if options.weights else []
        with every_layer_in_bf16() if arm == "everywhere" else contextlib.nullcontext():
            for seed in range(options.seeds):
                distill.main([*COMMON, *words, "--seed", str(seed)])
        pair = f"{PAIR[0]}-{options.student}"
        folder = options.out / f"synthetic-patient-{options.size}" / f"normal-{arm}" / pair
        runs[arm] = [folder / f"seed{seed}" for seed in range(options.seeds)]
    images = len(read_predictions(runs["auto"][0]).labels)
    print(f"{options.student} <- {PAIR[0]}, {options.size} px, {options.seeds} seeds, {images} test images")
    for arm, folders in runs.items():
        clocks = [reports.read(folder)["clock"] for folder in folders]
        print(f"{arm}: {clocks[0]['precision']}; " + ", ".join(f"{clock['seconds']:.0f} s" for clock in clocks))
    compare("auto against bf16 in every layer", runs["auto"], runs["everywhere"])


@contextlib.contextmanager
def every_layer_in_bf16():
    """Train as if no layer were slow in bf16."""
    with mock.patch.object(models, "adapt_to_cpu", lambda network: None), \
            mock.patch.object(run, "training_precision", lambda amp, network, images: pick_precision(amp, images.device)):
        yield


def compare(name, first, second):
    """Print the difference in test accuracy between two lists of runs.

    Also print how many pairs of runs have the same weights.
    """
    one, other = ([read_predictions(run) for run in runs] for runs in (first, second))
    sides = [dict(enumerate(found.right for found in side)) for side in (one, other)]
    compared = pair(*sides, one[0].clusters)
    low, high = estimate(compared).interval
    means = " against ".join(f"{np.mean([found.right.mean() for found in side]):.4f}" for side in (one, other))
    same = sum(all((a == b).all() for a, b in zip(*(load(run / "model.pt")["state_dict"].values() for run in pair)))
               for pair in zip(first, second))
    print(f"{name}: {means}; difference {100 * compared.mean:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]; "
          f"{same} of {len(first)} pairs have the same weights", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--amp", nargs="+", default=["bf16", "off"])
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--student", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", help="initial weights of the students of --layers, such as ImageNet's")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--student-epochs", type=int, help="of the students of --layers, if they are trained longer than their teachers")
    parser.add_argument("--out", type=Path, default=Path("benchmark-accuracy"))
    options = parser.parse_args()
    if options.layers:
        return layers(options)
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
