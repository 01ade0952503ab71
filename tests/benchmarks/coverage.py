"""Measure how often the interval of `statistics.difference` contains the true difference.

Run by hand:

    python tests/benchmarks/coverage.py [draws]

The script simulates the predictions of two equally good methods, so the true difference is 0.
Patients have 1 to 10 images. Some patients suit one method more than the other, and these are the
same patients for every seed. Each seed makes a whole network better or worse.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kd.reports.statistics import difference, half_width, patient_variance  # noqa: E402

SEEDS = 3
METHODS = ("patients and seeds", "patients only", "images only")


def simulated(random, patients, seed_sd):
    """Simulate the answers of two methods.

    Return whether each answer is right, for the first and for the second method (bool [seeds, N]
    each), and the patient of each image (int [N]).
    """
    owner = np.repeat(np.arange(patients), random.integers(1, 11, patients))
    ability = np.clip(random.normal(0.85, 0.12, patients), 0.3, 1)
    suits = random.normal(0, 0.10, patients)  # the advantage of the first method on each patient
    sides = []
    for sign in (1, -1):
        luck = random.normal(0, seed_sd, (SEEDS, 1))
        chance = np.clip((ability + sign * suits / 2)[owner] + luck, 0, 1)
        sides.append(random.random((SEEDS, len(owner))) < chance)
    return *sides, owner


def holds_zero(first, second, owner, method):
    """Return whether the 95 % interval of a method contains 0, the true difference."""
    if method == METHODS[0]:
        gap = difference(first, second, owner)
        return gap["low"] <= 0 <= gap["high"]
    gaps = (first.astype(float) - second).mean(0)
    groups = owner if method == METHODS[1] else np.arange(len(owner))
    half = half_width([(patient_variance(gaps, groups, 400), len(np.unique(groups)) - 1)])
    return abs(gaps.mean()) <= half


def main(draws=1000):
    print(f"coverage of nominal 95 % intervals, {draws} draws, {SEEDS} seeds, 1 to 10 images per patient")
    print(f"{'patients':>9} {'seed sd':>8}" + "".join(f"{name:>21}" for name in METHODS))
    for patients in (60, 300):
        for seed_sd in (0.0, 0.015, 0.03):
            random = np.random.default_rng([patients, int(1000 * seed_sd)])
            sets = [simulated(random, patients, seed_sd) for _ in range(draws)]
            shares = [np.mean([holds_zero(*one, method) for one in sets]) for method in METHODS]
            print(f"{patients:>9} {seed_sd:>8.3f}" + "".join(f"{share:>21.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
