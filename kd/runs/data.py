"""The data of a run as batches on its device."""

import torch

from kd import losses
from kd.config.plan import PhasePlan, Plan
from kd.data.views import Batch, Views
from kd.runs.session import Session
from kd.system.devices import pick_device, pick_precision
from kd.system.errors import Problem


class RunData:
    """What a run trains on and is judged on.

    train, unlabeled, pool  views to train on: the train split with labels and without them, and all
                            images that may be seen without labels (None where no phase shows them)
    valid, test             views to judge on, in float32
    class_weights           [K] for --balance weights, otherwise None
    steps                   optimizer steps of the whole run
    fixed                   what may not change under a run that continues
    """

    def __init__(self, plan: Plan, session: Session):
        training = plan.settings.training
        self.dataset, self.pool_images = session.open(), session.open_pool(plan)
        self.device = pick_device(training.device)
        self.precision = pick_precision(training.amp, self.device)
        self.valid = self.dataset.views("valid", self.device)
        self.test = self.dataset.views("test", self.device)
        self._make_training_views(training)
        self.steps = self._count_steps(plan)
        self.class_weights = None
        if plan.settings.data.balance == "weights":
            weights = losses.class_weights(self.train.labels, len(self.classes))
            self.class_weights = weights.to(self.device)
        self.fixed = {
            "split_hash": self.dataset.split_hash,
            "content_hash": self.dataset.content_hash,
            "pool_hash": self.pool_images and self.pool_images.hash,
            "precision": self.precision.words,
        }

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.index.classes

    def views(self, phase: PhasePlan) -> Views:
        """What a phase shows; without labels where it reads none."""
        if phase.shows_pool:
            return self.pool
        return self.train if phase.reads_labels else self.unlabeled

    def first_batch(self, plan: Plan) -> Batch:
        """What the student sees first."""
        return next(self.views(plan.phases[0]).epoch(0))

    def _make_training_views(self, training) -> None:
        order = {
            "batch_size": training.batch_size,
            "seed": training.seed,
            "shuffle": True,
            "augment": training.augment,
        }
        dataset, device = self.dataset, self.device
        shown, rows = dataset.splits.shown, dataset.splits.train
        self.train = dataset.views("train", device, shown=shown, **order)
        self.unlabeled = Views(dataset.store, rows, None, device=device, shown=shown, **order)
        self.pool = self.pool_images and self.pool_images.views(device, **order)

    def _count_steps(self, plan: Plan) -> int:
        """--epochs of the train split, whatever the phases show, or --max-steps."""
        training = plan.settings.training
        steps = training.epochs * self.train.steps
        steps = min(steps, training.max_steps or steps)
        if steps < len(plan.phases):
            raise Problem(
                f"steps of mode {plan.mode}: {steps} in all for"
                f" {len(plan.phases)} phases; give more --epochs or --max-steps, or a smaller"
                " --batch-size"
            )
        return steps


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: its own error of a GPU; of a CPU only the words tell."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
