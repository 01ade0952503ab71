"""Measure how strongly each kind of knowledge pulls on the student.

The script prints the norm of each kind's gradient with respect to the student's weights, divided by
the norm of the gradient of cross-entropy. Run by hand:

    python train_teacher.py --config configs/controls.toml --model resnet18 resnet34 seresnet50
    python tests/benchmarks/pull.py              # half a minute
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from kd import losses, models  # noqa: E402
from kd.config import parsing  # noqa: E402
from kd.config.settings import DistillSettings  # noqa: E402
from kd.data.augmentation import Augmentation  # noqa: E402
from kd.data.dataset import open_dataset, read_index  # noqa: E402
from kd.knowledge import KNOWLEDGE  # noqa: E402
from kd.system.devices import Precision  # noqa: E402
from kd.teachers import model_file  # noqa: E402
from kd.teachers.outputs import ObservedJointTeacher, ObservedNetwork  # noqa: E402
from kd.training import regressors  # noqa: E402
from kd.training.objectives import Knowledge  # noqa: E402

BATCHES, TEMPERATURE = 6, 4.0
CPU, FLOAT = torch.device("cpu"), Precision("cpu", "off")
RUNS = Path("runs/synthetic-patient-32/teacher")


def pulls(student, teacher, views):
    """Return the norm of each kind's gradient, divided by that of cross-entropy.

    Each kind is multiplied by its own weight. The result is the median over batches.
    """
    layers, found = (student.stages(), teacher.stages()), []
    taught_by = ObservedJointTeacher([ObservedNetwork(teacher, FLOAT, layers[1])], [1.0], CPU)
    student.module.train()
    for batch, _ in zip(views.epoch(0), range(BATCHES)):
        outputs, taught = student.outputs(batch.images, layers[0]), taught_by(batch)
        pairs = [(own.shape[1], other.shape[1]) for own, other in zip(outputs.features, taught.features[0])]
        knowledge = Knowledge({name: kind.weight for name, kind in KNOWLEDGE.items()}, (TEMPERATURE,),
                              regressors=regressors.build(KNOWLEDGE, pairs, 0))
        terms = knowledge.terms(outputs, taught, batch.labels)
        norms = {name: knowledge.weights[name] * norm(term, student) for name, term in terms.items()}
        ce = norm(losses.cross_entropy(outputs.logits, batch.labels), student)
        found.append([value / ce for value in norms.values()])
    return dict(zip(KNOWLEDGE, np.median(found, axis=0)))


def norm(loss, network):
    """Return the norm of a loss's gradient with respect to the weights of a network."""
    gradients = torch.autograd.grad(loss, list(network.module.parameters()), retain_graph=True, allow_unused=True)
    return sum(value.square().sum() for value in gradients if value is not None).sqrt().item()


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    [settings] = parsing.parse(DistillSettings, ["--config", str(ROOT / "configs/controls.toml")])
    dataset = open_dataset(settings.data, read_index(settings.data))
    views = dataset.views("train", CPU, batch_size=16, seed=0, shuffle=True, augmentation=Augmentation("light"))
    print(f"| teacher, student resnet18 | {' | '.join(KNOWLEDGE)} |\n{'|---' * (len(KNOWLEDGE) + 1)}|")
    for name in ("resnet34", "seresnet50"):
        teacher = model_file.load(RUNS / name / "seed0/model.pt").network
        for caption, student in (("fresh", models.build("resnet18", dataset.index.classes, seed=0)),
                                 ("trained", model_file.load(RUNS / "resnet18/seed0/model.pt").network)):
            cells = pulls(student, teacher, views)
            print(f"| {name}, {caption} | {' | '.join(f'{cells[kind]:.2f}' for kind in KNOWLEDGE)} |")


if __name__ == "__main__":
    main()
