"""The teachers of a run: networks, the average of the student, or a label distribution instead."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kd import losses
from kd.config.plan import Plan
from kd.data.index import digest
from kd.data.store import Joined, Store
from kd.data.views import Views
from kd.models import Classifier
from kd.system.devices import Precision
from kd.system.errors import BAD_CHECKPOINT, Problem, is_out_of_memory
from kd.system.messages import first_line
from kd.teachers.cache import TeacherCache
from kd.teachers.model_file import Trained
from kd.teachers.outputs import (
    BatchImages,
    BatchLogits,
    BatchTeacher,
    JointTeacher,
    LabelDistribution,
    LiveNetwork,
    ObservedJointTeacher,
    ObservedNetwork,
    OwnImages,
    collect_logits,
    same_images,
)
from kd.teachers.stored_logits import StoredLogits, key_of


@dataclass(frozen=True)
class Teacher:
    """A teacher network.

    name         as the user wrote it
    source       where it comes from, as text
    differences  how its training differs from that of the student, one text per difference
    """

    name: str
    trained: Trained
    source: str
    differences: list[str]


class Ensemble:
    """The teachers of a run; `members` are the networks that exist before the student.

    If there are none, a label distribution is the teacher, or the average of the student's weights.

    stores    stores of the student's images -> those of the same images at the size of the teachers
    follower  the average of the student's weights that teaches it; None for other teachers, and
              until the student exists
    """

    def __init__(
        self,
        plan: Plan,
        members: list[Teacher],
        classes: int,
        device: torch.device,
        cache: TeacherCache,
        stores: dict[Store | Joined, Store | Joined] | None = None,
    ):
        self.plan, self.members, self.classes = plan, members, classes
        self.device, self.cache, self.stores = device, cache, stores or {}
        self.weights = list(plan.shares)
        self.follower: Classifier | None = None
        self._own_views: dict[Views, Views] = {}
        for member in members:
            member.trained.network.to(device)

    @property
    def hash(self) -> str:
        """A hash of the weights of all members."""
        hashes = [member.trained.hash for member in self.members]
        return hashes[0] if len(hashes) == 1 else digest([*hashes, *map(str, self.weights)])

    @property
    def networks(self) -> list[Classifier]:
        """The networks that teach."""
        if self.follower is not None:
            return [self.follower]
        return [member.trained.network for member in self.members]

    def layers(self, student: Classifier, wanted: list[str]) -> list[tuple[str, ...]]:
        """Return the names of the layers to use: a tuple for the student, then one per teacher.

        They come from --layers (`wanted`), or are the stages that timm names. Raises Problem if a
        layer is given for another number of networks.
        """
        networks = [student, *self.networks]
        if not wanted:
            named = [network.stages() for network in networks]
            depth = min(map(len, named))
            return [names[-depth:] for names in named]
        rows = []
        for text in wanted:
            names = text.split(":")
            if len(names) not in (1, 2, len(networks)):
                raise Problem(
                    f"--layers '{text}' names {len(names)} modules for {len(networks)} networks."
                    " Use one name for all networks, STUDENT:TEACHER, or one name per network."
                )
            if len(names) != len(networks):
                names = [names[0], *[names[-1]] * len(self.networks)]
            rows.append(names)
        return [tuple(names) for names in zip(*rows)]

    def own_images(self, views: Views) -> BatchImages:
        """Return the function that returns the batches of `views` as the teachers see them."""
        return _own_images(self._seen(views), views)

    def _seen(self, views: Views) -> Views:
        """Return the views that the teachers see while their student sees `views`.

        They are made once, because their images may be copied to the device.
        """
        if not self.stores and views.teachers_see_them:
            return views
        if views not in self._own_views:
            self._own_views[views] = views.over(self.stores.get(views.store, views.store))
        return self._own_views[views]

    def try_images(self, images: torch.Tensor) -> None:
        """Raise Problem for a member that cannot process images [B, 3, S, S] of this size.

        A member that taught the run before this one is not tried again.
        """
        for member in self.members:
            network = member.trained.network
            if any(network is tried for tried in self.cache.tried):
                continue
            network.module.eval()
            try:
                with torch.inference_mode():
                    network(images[:1])
            except (RuntimeError, ValueError, AssertionError) as error:
                if is_out_of_memory(error):
                    raise
                why = first_line(error)
                raise Problem(
                    f"Teacher {member.name} ({member.source}) cannot process images of"
                    f" {images.shape[-1]} pixels ({why}). Use another --image-size, a"
                    " --teacher-image-size of its own, or another teacher."
                ) from None
            self.cache.tried.append(network)

    def on(self, views: Views, precision: Precision, layers: list[tuple[str, ...]]) -> BatchTeacher:
        """Return the function that computes the teacher's outputs for batches of `views`.

        layers  of each teacher, whose features are returned, too; empty for logits only
        """
        if not self.networks:
            correct = self.plan.distribution.correct
            return LabelDistribution(self.classes, 1 / self.classes if correct is None else correct)
        seen = self._seen(views)
        own = _own_images(seen, views)
        if layers:
            observed = [
                ObservedNetwork(network, precision, names, own)
                for network, names in zip(self.networks, layers)
            ]
            return ObservedJointTeacher(observed, self.weights, self.device)
        if self.follower is not None:
            networks = [LiveNetwork(self.follower, precision, own)]
            return JointTeacher(networks, self.weights, self.device)
        networks = [self._network(member, seen, precision, own) for member in self.members]
        return JointTeacher(networks, self.weights, self.device)

    def _network(
        self, member: Teacher, seen: Views, precision: Precision, own: BatchImages
    ) -> BatchLogits:
        """Return a member's stored logits, or the network itself with --no-stored-logits.

        Logits that are not stored yet are computed and stored when they are requested. `seen` are
        the views that the teachers see, and `own` is that of `own_images`.
        """
        network, settings = member.trained.network, self.plan.settings
        if not settings.distillation.stored_logits:
            return LiveNetwork(network, precision, own)
        key = key_of(network, member.trained.hash, seen, precision)
        if key not in self.cache.stores:
            cache_dir = settings.data.cache_dir
            self.cache.stores[key] = StoredLogits(cache_dir, network, key, seen, precision, own)
        return self.cache.stores[key]

    def answers(self, views: Views, check_stop: Callable[[], None]) -> np.ndarray:
        """Return the logits of each member for every slot, in order and in float32: [M, n, K]."""
        precision = Precision(self.device.type, "off")
        seen = self._seen(views)
        own = _own_images(seen, views)
        logits = []
        for member in self.members:
            network = self._network(member, seen, precision, own)
            logits.append(collect_logits(network, views, check_stop))
        return np.stack(logits)

    def together(self, logits: np.ndarray) -> np.ndarray:
        """Combine the members' logits [M, n, K] into logits [n, K].

        They are the logarithm of the weighted mean probability, up to a constant in each row.
        """
        return losses.mixture(torch.from_numpy(logits), torch.tensor(self.weights), 1.0).numpy()

    def judge(self, views: Views, check_stop: Callable[[], None]) -> np.ndarray:
        """Return the combined logits of all members for every slot: [n, K]."""
        return self.together(self.answers(views, check_stop))

    def check_unchanged(self, entry: dict) -> None:
        """Raise Problem (4) if a run continues with other teachers than it began with.

        entry: the `teacher` entry of the run's saved state.
        """
        if entry["hash"] != self.hash:
            raise Problem(
                f"Teacher {self.plan.teacher_name} has changed: the hash of its weights is"
                f" {self.hash}, but the run began with {entry['hash']}. Restore that teacher, or"
                " use --tag NAME to start a new run.",
                BAD_CHECKPOINT,
            )


def _own_images(seen: Views, views: Views) -> BatchImages:
    """Return the function from batches of `views` to those of `seen`, the teachers' views."""
    return same_images if seen is views else OwnImages(seen)
