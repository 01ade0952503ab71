"""Measure how often the intervals and verdicts of the tables are right, with known truths.

Run by hand:

    python tests/benchmarks/coverage.py pairs [--draws 2000]     # one comparison at a time
    python tests/benchmarks/coverage.py tables [--draws 1000]    # tables of 8 pairs; thesis; power
    python tests/benchmarks/coverage.py metrics [--draws 1000]   # every metric, of one model and of differences

Pairs and tables: the predictions are simulated. Patients have 1 to 6 images. An image is classified correctly if a
normal score is below the quantile of the network's accuracy, so that the accuracy is exact. The
score is the sum of

    the difficulty of patient and image, which is the same for every network: `shared` of the variance
    what suits one method and not the other on a patient, in every seed: a fifth of the rest
    chance in one seed: the remainder

With shared = 1, the errors of the weaker network include those of the stronger one in every seed.
Each network's accuracy varies between seeds by a normal deviation. "Before" are the rules of earlier
versions: the interval without added patients, the variances of patients and seeds summed, and a
verdict on every interval.

Metrics: see `Clinic`. The figures in brackets are those of plain
percentile intervals of the same resamples (of a third of the draws).
"""

import argparse
import itertools
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scipy import stats  # noqa: E402
from scipy.special import ndtri  # noqa: E402

from kd.reports import verdicts  # noqa: E402
from kd.reports.measures import MEASURES, differences, measure  # noqa: E402
from kd.reports.operating_point import OperatingPoint  # noqa: E402
from kd.reports.resampled import Predicted, Resampled  # noqa: E402
from kd.reports.resampling import Resamples, draw  # noqa: E402
from kd.reports.statistics import compare  # noqa: E402

MARGIN = 0.01
WORDS = ("better", "worse", "as good")
SPECIFIC = 0.2  # share of what is not shared that is a method's own strength on a patient


class World:
    """Patients and their images, on which networks can be simulated."""

    def __init__(self, random, patients, shared):
        self.random, self.rest = random, 1 - shared
        self.patient_of = np.repeat(np.arange(patients), random.integers(1, 7, patients))
        difficulty = np.sqrt(0.4) * random.standard_normal(patients)[self.patient_of]
        difficulty += np.sqrt(0.6) * random.standard_normal(len(self.patient_of))
        self.difficulty = np.sqrt(shared) * difficulty

    def network(self, accuracy, seed_sd, seeds):
        """Return whether each image is classified correctly in each seed: bool [seeds, N]."""
        random, images = self.random, len(self.patient_of)
        own = random.standard_normal(self.patient_of[-1] + 1)[self.patient_of]
        score = self.difficulty + np.sqrt(self.rest * SPECIFIC) * own
        chance = random.standard_normal((seeds, images))
        accuracies = accuracy + seed_sd * random.standard_normal((seeds, 1))
        scores = score + np.sqrt(self.rest * (1 - SPECIFIC)) * chance
        return scores < ndtri(np.clip(accuracies, 0.001, 0.999))


def before(one):
    """Return the interval of earlier versions, and the verdicts that followed from it."""
    added = 1 + 2 * one.center**2
    patients = (one.patients + 1) * (one.patients + 2) * one.patient_variance - added
    patients = max(0.0, patients) / (one.patients * (one.patients - 1))
    variances = [(patients, one.patients - 1), (one.seed_variance / one.seeds, one.seeds - 1)]
    variance = sum(part for part, _ in variances)
    spread = sum(part**2 / freedom for part, freedom in variances if freedom)
    half = 0.0
    if spread > 0:
        half = stats.t.ppf(0.975, max(1.0, variance**2 / spread)) * variance**0.5
    low, high = one.mean - half, one.mean + half
    says = {"better": low > 0, "worse": high < 0, "as good": low > -MARGIN}
    return low, high, {word for word in WORDS if says[word]}


def after(members):
    """Return the intervals and verdicts of a family as `before` does; None instead of silence."""
    found = []
    for gap in verdicts.judge(members, MARGIN):
        silent = gap["says"].startswith("no verdict")
        says = gap["says"].replace(verdicts.NOT_SHOWN, "")
        words = {word for word in WORDS if word in says}
        found.append((gap["low"], gap["high"], None if silent else words))
    return found


def of_pair(patients, seeds, seed_sd, accuracy, shared, difference, draws):
    """Simulate a single comparison and return the shares of right and wrong answers in percent."""
    key = [patients, seeds, *(round(1000 * part) for part in (seed_sd, accuracy, shared, 1 + difference))]
    random = np.random.default_rng(key)
    counts = dict.fromkeys(("covers", "covers before", "spoken", *WORDS, *(f"{word} before" for word in WORDS)), 0)
    for _ in range(draws):
        world = World(random, patients, shared)
        first, second = (world.network(accuracy + sign * difference / 2, seed_sd, seeds) for sign in (1, -1))
        one = compare(first, second, world.patient_of)
        low, high, words = before(one)
        counts["covers before"] += low <= difference <= high
        for word in words:
            counts[f"{word} before"] += 1
        [(low, high, words)] = after([verdicts.Member(one, "")])
        counts["covers"] += low <= difference <= high
        counts["spoken"] += words is not None
        for word in words or ():
            counts[word] += 1
    return {name: 100 * count / draws for name, count in counts.items()}


def of_table(world, students, teachers, accuracy, difference, seed_sd, seeds):
    """Return the members of the two families of a table, with the networks alone and the teachers.

    `seed_sd` has one value per student.
    """
    alone, taught = [], []
    teach = [world.network(accuracy, seed_sd[0], seeds) for _ in range(teachers)]
    for student in range(students):
        baseline = world.network(accuracy, seed_sd[student], seeds)
        for teacher in range(teachers):
            own = world.network(accuracy + difference, seed_sd[student], seeds)
            alone.append(verdicts.Member(compare(own, baseline, world.patient_of), student))
            taught.append(verdicts.Member(compare(own, teach[teacher], world.patient_of), teacher))
    return alone, taught


def of_tables(patients, seeds, seed_sd, accuracy, shared, difference, draws):
    """Simulate tables of 4 students and 2 teachers: wrong words and power, in percent."""
    sds = (seed_sd,) * 4 if seed_sd != "unequal" else (0.03, 0.003, 0.003, 0.003)
    random = np.random.default_rng([patients, seeds, round(1000 * sum(sds)), round(1000 * accuracy)])
    counts = dict.fromkeys(("any", "any before", "share", "share before", "alone"), 0.0)
    right = {"better"} if difference > 0 else set()
    for _ in range(draws):
        world = World(random, patients, shared)
        alone, _ = of_table(world, 4, 2, accuracy, difference, sds, seeds)
        old = [before(member.comparison)[2] - {"as good"} for member in alone]
        new = [(words or set()) - {"as good"} for *_, words in after(alone)]
        single = [(words or set()) - {"as good"} for member in alone for *_, words in after([member])]
        for name, found in (("any before", old), ("any", new)):
            counts[name] += any(words - right for words in found)
        for name, found in (("share before", old), ("share", new), ("alone", single)):
            counts[name] += np.mean([words == right if difference else bool(words) for words in found])
    return {name: 100 * count / draws for name, count in counts.items()}


def of_thesis(patients, seeds, seed_sd, accuracy, shared, draws):
    """Simulate the thesis's 24 pairs with nothing true: studies with any wrong word, in percent."""
    random = np.random.default_rng([patients, seeds, round(1000 * seed_sd)])
    counts = dict.fromkeys(("before", "after"), 0)
    for _ in range(draws):
        world = World(random, patients, shared)
        families = []
        for students, teachers in ((4, 2), (2, 4), (4, 2)):
            families += of_table(world, students, teachers, accuracy, 0.0, (seed_sd,) * 4, seeds)
        old, new = [], []
        for family in families:
            old += [before(member.comparison)[2] - {"as good"} for member in family]
            new += [(words or set()) - {"as good"} for *_, words in after(family)]
        counts["before"] += any(old)
        counts["after"] += any(new)
    return {name: 100 * count / draws for name, count in counts.items()}


def of_effects(modes, pairs, patients, seeds, seed_sd, accuracy, draws):
    """Simulate the primary result without any difference: modes with a wrong better or worse, in percent.

    Each mode is the mean over its pairs, and all modes share the networks trained alone.
    """
    random = np.random.default_rng([modes, pairs, patients, seeds, round(1000 * seed_sd)])
    wrong = 0
    for _ in range(draws):
        world = World(random, patients, 0.6)
        alone = np.mean([world.network(accuracy, seed_sd, seeds) for _ in range(pairs)], axis=0)
        family = []
        for _ in range(modes):
            taught = np.mean([world.network(accuracy, seed_sd, seeds) for _ in range(pairs)], axis=0)
            family.append(verdicts.Member(compare(taught, alone, world.patient_of), "alone"))
        wrong += any((words or set()) - {"as good"} for *_, words in after(family))
    return {"any": 100 * wrong / draws}


def show(title, function, settings, names, columns, draws):
    """Print the results of a function for each of its settings as a Markdown table."""
    print(f"\n{title} ({draws} draws; Monte Carlo error of a share p: at 2.5 %"
          f" {100 * (0.025 * 0.975 / draws) ** 0.5:.2f}, at 5 % {100 * (0.05 * 0.95 / draws) ** 0.5:.2f} points)\n")
    print("| " + " | ".join([*names, *columns]) + " |")
    print("|" + "---|" * (len(names) + len(columns)), flush=True)
    with ProcessPoolExecutor() as pool:
        futures = [pool.submit(function, *one, draws) for one in settings]
        for one, future in zip(settings, futures):
            found = future.result()
            print("| " + " | ".join([*map(str, one), *(f"{found[column]:.1f}" for column in columns)]) + " |", flush=True)


NAMES = ("patients", "seeds", "seed sd", "accuracy", "shared", "difference")


def pairs(draws):
    grid = list(itertools.product((20, 60, 300, 1000), (1, 2, 3, 5), (0.0, 0.003, 0.01), (0.9, 0.98), (0.6, 1.0)))
    # Without chance and seeds, networks of equal accuracy are identical.
    equal = [(*one, 0.0) for one in grid if one[4] < 1 or one[2] > 0]
    show("No difference", of_pair, equal, NAMES,
         ("covers", "covers before", "better", "worse", "better before", "worse before", "spoken"), draws)
    show("One point worse", of_pair, [(*one, -0.01) for one in grid], NAMES,
         ("covers", "covers before", "as good", "as good before", "spoken"), draws)


def tables(draws):
    settings = [(patients, seeds, sd, accuracy, 0.6, 0.0) for patients, seeds, sd, accuracy in itertools.product(
        (60, 300, 1000), (3, 5), (0.0, 0.003, 0.01, "unequal"), (0.9, 0.98))]
    show("Tables of 4 students and 2 teachers without any difference: tables with a wrong better or worse", of_tables,
         settings, NAMES, ("any", "any before"), draws)
    show("The primary result without any difference: families with a wrong better or worse", of_effects,
         [(*one, 0.9) for one in itertools.product((1, 3, 6), (1, 4), (300, 1000), (3,), (0.003, 0.01, 0.03))],
         ("modes", "pairs", "patients", "seeds", "seed sd", "accuracy"), ("any",), draws)
    effects = [(300, seeds, sd, accuracy, 0.6, size) for seeds, sd, accuracy, size in itertools.product(
        (3, 5), (0.0, 0.003, 0.01), (0.9,), (0.03, 0.05))]
    show("The same tables with a true difference: share of pairs called better", of_tables, effects, NAMES,
         ("share", "share before", "alone"), draws)
    show("The 24 pairs of the thesis without any difference: studies with a wrong better or worse", of_thesis,
         [(750, 3, sd, 0.9, 0.6) for sd in (0.0, 0.003, 0.01)], NAMES[:5], ("after", "before"), draws)


class Clinic:
    """Patients of 1 to 10 images in studies of one label, some of them positive, and their images' scores.

    The images of a positive patient are mixed: her first study is positive, each further one with probability
    0.7. With grades, a patient is of grade 2 with the probability `prevalence`, otherwise of grade 1 (30 %) or 0;
    each study after the first is one grade lower with probability 0.3. A score is `signal` times the label plus
    standard normal noise, of which half of the variance is the patient's and half the image's. Of the former,
    70 % are the same for all networks, and of the latter 50 %. The logits are those of Bayes' rule for this
    score, times 1.4: they are too certain.
    """

    def __init__(self, random, patients, prevalence, graded):
        self.random, self.prevalence, self.graded = random, prevalence, graded
        images = random.integers(1, 11, patients)
        self.patient_of = np.repeat(np.arange(patients), images)
        count = len(self.patient_of)
        is_first = np.diff(self.patient_of, prepend=-1) > 0
        begins = is_first | (random.random(count) < 0.4)  # a study
        self.study_of = np.cumsum(begins) - 1
        rest = np.array([0.7, 0.3]) * (1 - prevalence) if graded else np.array([1 - prevalence])
        grade = np.searchsorted(rest.cumsum(), random.random(patients))[self.patient_of[begins]]
        lower = ~is_first[begins] & (grade > 0) & (random.random(len(grade)) < 0.3)
        self.labels = (grade - lower)[self.study_of]
        self.share = np.append(rest, prevalence) if graded else np.array([1 - 0.75 * prevalence, 0.75 * prevalence])
        self.of_patient, self.of_image = random.standard_normal(patients), random.standard_normal(count)

    def method(self):
        """Return what is special to a method on each patient, in every seed."""
        return self.random.standard_normal(len(self.of_patient))

    def network(self, signal, method, specific=False):
        """Return the predictions of one seed.

        The operating point has a sensitivity of 0.95, with `specific` a specificity of 0.99, and with grades a
        threshold of 0.3.
        """
        noise = (np.sqrt(0.7) * self.of_patient + np.sqrt(0.3) * method)[self.patient_of]
        noise = noise + np.sqrt(0.5) * (self.of_image + self.random.standard_normal(len(noise)))
        scores = signal * self.labels + np.sqrt(0.5) * noise
        steps = signal * np.arange(len(self.share))
        logits = 1.4 * (np.log(self.share) + scores[:, None] * steps - steps**2 / 2)
        threshold = 0.3
        if not self.graded:
            score = 2.326 if specific else signal - 1.645
            at = 1.4 * (np.log(self.share[1] / self.share[0]) + signal * score - signal**2 / 2)
            threshold = 1 / (1 + np.exp(-at))
        return Predicted(logits, self.labels, self.patient_of, self.study_of.tolist(), 1.0, (len(self.share) - 1,),
                         OperatingPoint("fixed", threshold), self.graded)


SEED_SD = 0.1  # of a signal between seeds
GRADED = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc", "kappa", "quadratic_kappa", "referable_auc")
RATES = ("sensitivity", "specificity", "ppv", "npv", "ppv_at_prevalence", "npv_at_prevalence")
UNGRADED = tuple(name for name in MEASURES if "grades" not in MEASURES[name].needs)


class Kind(NamedTuple):
    """A kind of clinic and networks: see `Clinic`. `signals` are those of a better and of another network."""

    title: str
    names: tuple
    graded: bool = False
    specific: bool = False
    signals: tuple = (2.2, 2.0)
    stated: float = 0.05  # prevalence


KINDS = (
    Kind("", UNGRADED),
    Kind(", three grades", GRADED, graded=True),
    Kind(", AUROC 0.99, specificity 0.99, stated prevalence 0.01", RATES, specific=True, signals=(3.5, 3.3), stated=0.01),
    Kind(", AUROC 0.99, specificity 0.99, stated prevalence 0.1", RATES[4:], specific=True, signals=(3.5, 3.3), stated=0.1),
)


def true_values(kind, prevalence, signals, patients=60000):
    """Return each metric on a large sample, averaged over signals."""
    clinic = Clinic(np.random.default_rng([7, kind.graded]), patients, prevalence, kind.graded)
    method, found = clinic.method(), []
    for signal in signals:
        own = clinic.network(signal, method, kind.specific)
        state = Resampled(own, Resamples(np.ones((1, patients)), clinic.patient_of, 0), kind.stated)
        found.append([MEASURES[name].compute(state)[0] for name in kind.names])
    return np.mean(found, axis=0)


def seeds_of_normal(center):
    """Return signals whose mean metric is about that over a normal distribution: its quantiles at 5 equal steps."""
    return center + SEED_SD * ndtri((np.arange(5) + 0.5) / 5)


def of_metrics(what, patients, prevalence, kind, draws, resamples):
    """Simulate intervals: coverage, coverage of percentiles, mean width, share without an interval, by name."""
    names, (better, signal) = kind.names, kind.signals
    if what == "one":
        truth = true_values(kind, prevalence, [signal])
    else:
        truth = true_values(kind, prevalence, seeds_of_normal(better)) - true_values(kind, prevalence, seeds_of_normal(signal))
    random = np.random.default_rng([patients, round(100 * prevalence), kind.graded, what == "one"])
    rows = np.full((draws, len(names), 4), np.nan)
    for number in range(draws):
        clinic = Clinic(random, patients, prevalence, kind.graded)
        sampled = draw(clinic.patient_of, resamples)
        if what == "one":
            own = clinic.network(signal, clinic.method(), kind.specific)
            found = measure(own, names, kind.stated, sampled)
            state = Resampled(own, sampled, kind.stated) if number % 3 == 0 else None
        else:
            sides, state = [], None
            for center in (better, signal):
                method, seeds = clinic.method(), center + SEED_SD * random.standard_normal(3)
                sides.append({seed: clinic.network(one, method, kind.specific) for seed, one in enumerate(seeds)})
            found = differences(*sides, names, kind.stated, sampled)
        for place, name in enumerate(names):
            one = found[name]
            if one["low"] is not None:
                rows[number, place] = one["low"], one["high"], np.nan, np.nan
                if state is not None:
                    drawn = sampled.split(MEASURES[name].compute(state)).drawn
                    if np.isfinite(drawn).any():
                        rows[number, place, 2:] = np.nanquantile(drawn, [0.025, 0.975])
    given = np.isfinite(rows[:, :, 0])
    low, high, first, last = np.moveaxis(rows, 2, 0)
    counts, thirds = given.sum(0), np.isfinite(first).sum(0)
    return {name: (100 * values[0], 100 * values[1], values[2], 100 * values[3]) for name, values in zip(names, zip(
        ((low <= truth) & (truth <= high)).sum(0) / counts, ((first <= truth) & (truth <= last)).sum(0) / np.maximum(thirds, 1),
        np.nanmean(high - low, axis=0), 1 - counts / draws))}


def metrics(draws, resamples):
    grid = list(itertools.product((60, 300), (0.1, 0.5)))
    for what, title, times in (("one", "One network", 1), ("two", "Differences of two networks with three seeds", 3)):
        for kind in KINDS:
            count = draws // times
            print(f"\n{title}{kind.title} ({count} draws of {resamples} resamples; Monte Carlo error at"
                  f" 95 %: {100 * (0.95 * 0.05 / count) ** 0.5:.1f} points)\n")
            columns = [f"{patients} patients, {prevalence:g}" for patients, prevalence in grid]
            print("| metric | " + " | ".join(columns) + " |\n" + "|---" * (len(grid) + 1) + "|", flush=True)
            with ProcessPoolExecutor() as pool:
                futures = [pool.submit(of_metrics, what, *one, kind, count, resamples) for one in grid]
                found = [future.result() for future in futures]
            for name in kind.names:
                cells = [f"{covers:.1f}" + (f" ({percentile:.1f})" if what == "one" else "") + f", {width:.3f}"
                         for covers, percentile, width, _ in (one[name] for one in found)]
                print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
            rare = max(missing for one in found for *_, missing in one.values())
            print(f"\nDraws without an interval: at most {rare:.1f} %", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pairs", "tables", "metrics"))
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=300, help="of patients, in each draw of metrics")
    options = parser.parse_args()
    if options.what == "metrics":
        metrics(options.draws, options.resamples)
    else:
        {"pairs": pairs, "tables": tables}[options.what](options.draws)


if __name__ == "__main__":
    main()
