"""Compare ways to train on labels after a student has matched its teacher on unlabelled images.

Run by hand:

    python tests/benchmarks/phase_two.py [--seeds 20 21 22 23 24] [--fraction 0.05] [--out FOLDER]

The teacher is trained on all labels of the synthetic set, the student knows a fraction of them. All
variants of the second phase start from the same weights, those at the end of the first phase, so
that only the second phase differs. Two series of runs: the labels are fixed while the seed of the
training varies, and the seed of the training is fixed while the labels vary. After an interruption,
the same command continues; results that are in FOLDER are not computed again.

The table shows accuracies of the validation split, by which a variant should be chosen, and of the
test split, each as the mean over the runs minus that of matching on unlabelled images for the steps
of both phases (`--mode unlabeled-only`).
"""

import argparse
import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import kd  # noqa: E402, F401  (imported first: it sets up the allocator)
import train_teacher  # noqa: E402
from kd.config import parsing  # noqa: E402
from kd.config.resolve import resolve  # noqa: E402
from kd.config.settings import DistillSettings  # noqa: E402
from kd.knowledge import KNOWLEDGE  # noqa: E402
from kd.loop import Hooks, Phase, fit, predict  # noqa: E402
from kd.reports import metrics  # noqa: E402
from kd.runs.data import RunData  # noqa: E402
from kd.runs.folder import RunFolder  # noqa: E402
from kd.runs.phases import PhaseBuilder  # noqa: E402
from kd.runs.run import build_student, find_teachers, join  # noqa: E402
from kd.runs.session import Session  # noqa: E402
from kd.system.signals import StopSignals  # noqa: E402
from kd.teachers.outputs import no_teacher  # noqa: E402
from kd.training.objectives import Distillation, Knowledge, Supervised  # noqa: E402
from kd.training.precision import training_precision  # noqa: E402
from kd.training.state import State  # noqa: E402

RECIPE = """--dataset synthetic --synthetic-images 5124 --valid-per-class 100 --test-per-class 300 --image-size 32
    --batch-size 32 --epochs 6 --lr 1e-3 --schedule cosine --no-pretrained --no-log-images""".split()
KD = Knowledge({"kd": 1.0}, (4.0,))
MATCHING = Knowledge({"logit-mse": KNOWLEDGE["logit-mse"].weight}, (1.0,))


class Variant(NamedTuple):
    """A second phase.

    factor  of the learning rate
    warmup  share of the steps
    """

    loss: str
    factor: float = 1.0
    warmup: float = 0.0


VARIANTS = {
    "labels, lr": Variant("ce"),
    "labels, lr / 10": Variant("ce", 0.1),
    "labels, lr / 30": Variant("ce", 1 / 30),
    "labels, lr, warm-up": Variant("ce", 1.0, 0.3),
    "labels, lr / 10, warm-up": Variant("ce", 0.1, 0.3),
    "labels and KD, lr": Variant("kd"),
    "labels and KD, lr / 10": Variant("kd", 0.1),
    "labels and KD, lr / 30": Variant("kd", 1 / 30),
    "labels and KD, lr, warm-up": Variant("kd", 1.0, 0.3),
    "mixed batches, lr": Variant("mixed"),
    "mixed batches, lr / 10": Variant("mixed", 0.1),
}
# The first is matching for the steps of both phases: all others are compared with it.
ONLY, START, ONE_PHASE = "matching only", "end of phase one", "one phase, mixed batches"


class Study:
    """One student: its data, its teacher and its first phase."""

    def __init__(self, options, seed, label_seed):
        words = [
            *RECIPE, *places(options), "--mode", "unlabeled", "--seed", seed,
            "--teacher", options.teacher, "--teacher-checkpoint", teacher_file(options), "--allow-foreign-teacher",
            "--student", options.student, "--labeled-fraction", options.fraction, "--labeled-seed", label_seed,
        ]
        [settings] = parsing.parse(DistillSettings, list(map(str, words)))
        self.plan = resolve(settings)
        self.training = self.plan.settings.training
        self.session = Session(StopSignals())
        self.data = RunData(self.plan, self.session)
        self.folder = RunFolder(self.plan.folder)
        self.first = self.data.first_batch(self.plan)
        ensemble = join(find_teachers(self.plan, self.session), self.plan, self.data, self.session, self.first)
        self.student = build_student(self.plan, self.data, self.folder)
        self.precision = training_precision(self.training.amp, self.student, self.first.images)
        self.ensemble, self.phases = ensemble, PhaseBuilder(self.plan, self.data, ensemble).build()
        self.place = options.out / f"phase-one-seed{seed}.pt"

    def train(self, phase, weights=None, training=None):
        """Train one phase and return its state; from `weights` with the counters behind phase one."""
        training = training or self.training
        state = State(copy.deepcopy(self.student), training, self.precision)
        if weights is not None:
            state.network.module.load_state_dict(weights["weights"])
            state.progress.total, state.progress.epoch = weights["steps"], weights["epochs"]
        fit([state], [phase], self.data.valid, training, Hooks())
        return state

    def phase_one(self):
        """Return the weights at the end of the first phase, trained if they are not stored."""
        if not self.place.exists():
            state = self.train(self.phases[0])
            torch.save({"weights": state.network.module.state_dict(), "steps": state.progress.total,
                        "epochs": state.progress.epoch}, self.place)
        return torch.load(self.place, weights_only=True)

    def accuracies(self, weights):
        """Return the validation and test accuracy of weights."""
        network = copy.deepcopy(self.student)
        network.module.load_state_dict(weights)
        return [metrics.accuracy(predict(network, views), views.labels.numpy())
                for views in (self.data.valid, self.data.test)]

    def phase_two(self, variant):
        """Return [validation, test] accuracies of the best epoch of a second phase."""
        own = VARIANTS[variant]
        first, last = self.phases
        phase = self.phase(own.loss, first.end, last.end, own.factor * self.training.lr)
        training = dataclasses.replace(self.training, warmup=own.warmup) if own.warmup else self.training
        state = self.train(phase, self.phase_one(), training)
        return self.accuracies(state.best_weights)

    def matching_only(self):
        """Return [validation, test] accuracies of matching for the steps of both phases."""
        phase = dataclasses.replace(self.phases[0], end=self.phases[-1].end)
        return self.accuracies(self.train(phase).best_weights)

    def one_phase(self):
        """Return [validation, test] accuracies of one phase over mixed batches, of the same steps."""
        phase = self.phase("mixed", 0, self.phases[-1].end, self.training.lr)
        return self.accuracies(self.train(phase).best_weights)

    def phase(self, loss, start, end, lr):
        """Return a phase of training on labels with one of the losses of VARIANTS."""
        data, views, teacher = self.data, self.data.train, no_teacher
        if loss == "mixed":
            views = data.half_labelled
        if loss != "ce":
            teacher = self.ensemble.on(views, data.precision, [])
        objective = {
            "ce": Supervised(data.class_weights),
            "kd": Distillation(KD, 0.5, data.class_weights),
            "mixed": Distillation(MATCHING, 0.5, data.class_weights, data.half_labelled.labelled_share),
        }[loss]
        return Phase(loss, views, teacher, objective, start, end, lr)


def teacher_file(options):
    """Train the teacher on all labels, if it is missing, and return its model.pt."""
    out, seed = options.out / "runs", options.seeds[0]
    file = out / "synthetic-patient-32/teacher" / options.teacher / f"seed{seed}/model.pt"
    if not file.exists():
        train_teacher.main([*RECIPE, *places(options), "--model", options.teacher, "--seed", str(seed)])
    return file


def places(options):
    """Return the flags of the folders for runs and for the cache."""
    return ["--out", str(options.out / "runs"), "--cache-dir", str(options.out / "cache")]


def measure(options):
    """Return {series: [{variant: [valid, test]} of each run]}."""
    start, found = options.seeds[0], {}
    cells = {"fixed labels": [(seed, start) for seed in options.seeds],
             "fixed seed": [(start, seed) for seed in options.seeds]}
    for series in options.series:
        found[series] = [cell(options, seed, labels) for seed, labels in cells[series]]
    return found


def cell(options, seed, labels):
    """Return {variant: [valid, test]} of one seed of the training and one of the labels."""
    store = options.out / f"results-{options.fraction:g}-seed{seed}-labels{labels}.json"
    own = json.loads(store.read_text()) if store.exists() else {}
    wanted = [name for name in (ONLY, START, *options.variants) if name not in own]
    if not wanted:
        return own
    study = Study(options, seed, labels)
    for name in wanted:
        if name == ONLY:
            own[name] = study.matching_only()
        elif name == START:
            own[name] = study.accuracies(study.phase_one()["weights"])
        elif name == ONE_PHASE:
            own[name] = study.one_phase()
        else:
            own[name] = study.phase_two(name)
        print(f"seed {seed}, labels {labels}, {name}: valid {own[name][0]:.4f}, test {own[name][1]:.4f}", flush=True)
        store.write_text(json.dumps(own, indent=1))
    return own


def show(found):
    """Print a table: differences from matching only in points, mean and sd over runs."""
    for series, runs in found.items():
        base = np.array([run[ONLY] for run in runs])
        print(f"\n{series} ({len(runs)} runs): matching only has valid {base[:, 0].mean():.4f}, test {base[:, 1].mean():.4f}")
        print(f"{'second phase, minus matching only':40}{'valid':>16}{'test':>16}")
        for name in [START, *VARIANTS, ONE_PHASE]:
            if any(name not in run for run in runs):
                continue
            gaps = np.array([run[name] for run in runs]) - base
            print(f"{name:40}" + "".join(f"{100 * gap.mean():+9.1f} ± {100 * gap.std(ddof=1):.1f}" for gap in gaps.T))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22, 23, 24])
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--series", nargs="+", default=["fixed labels", "fixed seed"], choices=("fixed labels", "fixed seed"))
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS, ONE_PHASE], choices=[*VARIANTS, ONE_PHASE])
    parser.add_argument("--out", type=Path, default=Path("benchmark-phase-two"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    show(measure(options))


if __name__ == "__main__":
    main()
