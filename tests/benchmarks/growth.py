"""Measure what 1,000, 10,000 and 100,000 images cost in start-up time, memory and time per step.

Run by hand:

    python tests/benchmarks/growth.py [sizes ...]

The images are synthetic, 32 x 32 pixels. Each size runs in a process of its own. Memory is the
anonymous memory of the process. It does not include the pages of the cache files, because the
kernel can reclaim them at any time. The benchmark takes about six minutes on two cores, most of it
for drawing the images.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

import kd  # noqa: E402, F401  (imported first: it sets up the allocator)
from kd import models  # noqa: E402
from kd.config.settings import Data, Training  # noqa: E402
from kd.data.augmentation import Augmentation  # noqa: E402
from kd.data.dataset import open_dataset, read_index  # noqa: E402
from kd.loop import Hooks, Phase, train_epoch  # noqa: E402
from kd.system.devices import Precision  # noqa: E402
from kd.teachers.outputs import JointTeacher  # noqa: E402
from kd.teachers.stored_logits import StoredLogits, key_of  # noqa: E402
from kd.training.objectives import Distillation, Knowledge  # noqa: E402
from kd.training.state import State  # noqa: E402

CPU, FLOAT, STEPS = torch.device("cpu"), Precision("cpu", "off"), 60


class Enough(Exception):
    """Raised when all timed steps are done."""


def memory():
    """Return the anonymous memory of this process, in bytes."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("RssAnon:") + 1]) * 1024


def opened(images):
    data = Data(dataset="synthetic", synthetic_images=images, image_size=32, cache_dir="cache")
    begun = time.perf_counter()
    dataset = open_dataset(data, read_index(data))
    return dataset, time.perf_counter() - begun


def measured(images):
    """Return all figures for one number of images."""
    opened(196)  # triggers the late imports, so that they are not measured
    bare = memory()
    first = opened(images)[1]
    dataset, second = opened(images)
    views = dataset.views("train", CPU, batch_size=16, seed=0, shuffle=True, augmentation=Augmentation("light"))
    with_data = memory()
    training = Training(batch_size=16)
    state = State(models.build("resnet18", dataset.index.classes), training, FLOAT)
    network = models.build("resnet18", dataset.index.classes, seed=1)
    teacher = StoredLogits("cache", network, key_of(network, "growth", views, FLOAT), views, FLOAT)
    networks, marks, lookups = memory() - with_data, [], []

    hooks = Hooks()

    def after_step(state):
        marks.append(time.perf_counter())
        if len(marks) > STEPS:
            raise Enough
    hooks.after_step = after_step

    def timed(batch):
        begun = time.perf_counter()
        logits = teacher(batch)
        lookups.append(time.perf_counter() - begun)
        return logits
    taught = JointTeacher([timed], [1.0], CPU)
    objective = Distillation(Knowledge({"kd": 1.0}, (4.0,)), 0.5)
    phase = Phase("distil", views, taught, objective, 0, 10**9, training.lr)
    for _ in range(2):  # in the second pass, the logits are already stored
        marks.clear(), lookups.clear()
        state.progress.step = 0
        with contextlib.suppress(Enough):
            train_epoch([state], phase, training, hooks)
        steps = [1000 * (b - a) for a, b in zip(marks, marks[1:])]
    return {"images": images, "first start, s": first, "ms per image": 1000 * first / images, "second start, s": second,
            "MB of data": (with_data - bare) / 1e6, "MB of data and 120 steps": (memory() - networks - bare) / 1e6,
            "ms per step": statistics.median(steps), "stored logits, ms per step": 1000 * statistics.median(lookups[1:])}


def main():
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measured(int(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 10_000, 100_000])
    rows = []
    for images in parser.parse_args().sizes:
        words = [sys.executable, str(Path(__file__).resolve()), "--one", str(images)]
        with tempfile.TemporaryDirectory() as place:
            out = subprocess.run(words, cwd=place, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
        print("  ".join(f"{key} {value:.3f}" for key, value in rows[-1].items()), flush=True)
    print("\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0].keys(), ["---"] * len(rows[0]),
                    *([format(value, ".3f" if isinstance(value, float) else ",") for value in row.values()] for row in rows)]))


if __name__ == "__main__":
    main()
