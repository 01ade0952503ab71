"""The data of a run as batches on its device."""

from dataclasses import replace

from kd.config.plan import PhasePlan, Plan
from kd.data.augmentation import Augmentation
from kd.data.half_labelled import HalfLabelled
from kd.data.views import Batch, Views
from kd.runs.session import Session
from kd.system.devices import pick_device, pick_precision
from kd.system.errors import Problem
from kd.training.class_weights import class_weights
from kd.training.selection import refuse_undefined


class RunData:
    """The data that a run trains on and is evaluated on.

    dataset        the data set, split and decoded
    pool_images    all images that may be used without labels; None if no phase uses them
    train          training views of the train split, with labels
    unlabeled      the same views, without labels
    pool           training views of `pool_images`, or None
    half_labelled  training views whose batches are half from `pool` and half from `train`, or None
    valid, test    views for evaluation, which is in float32
    class_weights  [K] for --balance weights, otherwise None; of the labels that are kept
    steps          number of optimizer steps of the complete run
    precision      precision of passes without gradients, such as those of teachers
    fixed          hashes that must be the same when the run continues
    teachers_stores  stores of the run -> the same images at another size, for the teachers

    Raises Problem if the device cannot be used, if there are fewer steps than phases, or if the
    metric of --select is undefined for the labels of the validation split.
    """

    def __init__(self, plan: Plan, session: Session):
        training = plan.settings.training
        self.dataset = session.open(plan.settings.data)
        self.pool_images = session.open_pool(plan)
        self.teachers_stores = session.teachers_stores(plan)
        self.device = pick_device(training.device)
        self.precision = pick_precision(training.amp, self.device)
        self.valid = self.dataset.views("valid", self.device)
        self.test = self.dataset.views("test", self.device)
        refuse_undefined(plan.select, self.valid.labels.numpy(), self.classes)
        self._make_training_views(plan)
        self.steps = self._count_steps(plan)
        self.class_weights = None
        if plan.settings.data.balance == "weights":
            weights = class_weights(self.train.labels, len(self.classes))
            self.class_weights = weights.to(self.device)
        self.fixed = {
            "split_hash": self.dataset.split_hash,
            "content_hash": self.dataset.content_hash,
            "pool_hash": self.pool_images and self.pool_images.hash,
        }

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.index.classes

    def views(self, phase: PhasePlan) -> Views:
        """Return the views that a phase uses, without labels if it does not read them."""
        if phase.shows_pool:
            return self.pool
        if phase.half_labelled:
            return self.half_labelled
        return self.train if phase.reads_labels else self.unlabeled

    def first_batch(self, plan: Plan) -> Batch:
        """Return the first batch that the student sees."""
        return next(self.views(plan.phases[0]).epoch(0))

    def _make_training_views(self, plan: Plan) -> None:
        training, views = plan.settings.training, plan.views
        how = {"without": tuple(training.augment_without), "mixup": training.mixup}
        weak = Augmentation(views.teacher, **how)
        order = {
            "batch_size": training.batch_size,
            "seed": training.seed,
            "shuffle": True,
            "augmentation": Augmentation(views.student, **how),
            "taught": replace(weak, apart=views.independent),
        }
        dataset, device = self.dataset, self.device
        shown, rows = dataset.splits.shown, dataset.splits.train
        self.train = dataset.views("train", device, shown=shown, **order)
        self.unlabeled = Views(dataset.store, rows, None, device=device, shown=shown, **order)
        self.pool = self.half_labelled = None
        if self.pool_images is not None:
            self.pool = self.pool_images.views(device, **order)
            labelled = dataset.views("train", device, shown=shown, **order | {"augmentation": weak})
            self.half_labelled = HalfLabelled(self.pool, labelled)

    def _count_steps(self, plan: Plan) -> int:
        """Return the number of steps in --epochs of the train split, or --max-steps if lower.

        The epochs are those of the train split, even if the phases use other images.
        """
        training = plan.settings.training
        steps = training.epochs * self.train.steps
        steps = min(steps, training.max_steps or steps)
        if steps < len(plan.phases):
            raise Problem(
                f"--mode {plan.mode} needs at least one step for each of its {len(plan.phases)}"
                f" phases, but the run has only {steps}. Increase --epochs or --max-steps, or use a"
                " smaller --batch-size."
            )
        return steps
