"""The networks that teach a run, one or several, or the label distribution that stands for them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kd import losses
from kd.config.plan import Plan
from kd.data.index import digest
from kd.data.views import Views
from kd.models import Classifier
from kd.system.devices import Precision
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.teachers.cache import TeacherCache
from kd.teachers.model_file import Trained
from kd.teachers.outputs import (
    BatchLogits,
    BatchTeacher,
    JointTeacher,
    LabelDistribution,
    LiveNetwork,
    ObservedJointTeacher,
    ObservedNetwork,
    collect_logits,
)
from kd.teachers.stored_logits import StoredLogits, key_of


@dataclass(frozen=True)
class Teacher:
    """A network that teaches.

    name         as the user wrote it
    source       where it comes from, in words
    differences  in what its training differs from its student's, in words
    """

    name: str
    trained: Trained
    source: str
    differences: list[str]


class Ensemble:
    """The teachers of a run; `members` is empty where a label distribution teaches."""

    def __init__(
        self,
        plan: Plan,
        members: list[Teacher],
        classes: int,
        device: torch.device,
        cache: TeacherCache,
    ):
        self.plan, self.members, self.classes = plan, members, classes
        self.device, self.cache = device, cache
        self.weights = list(plan.shares)
        for member in members:
            member.trained.network.to(device)

    @property
    def hash(self) -> str:
        """A name for all weights that teach."""
        hashes = [member.trained.hash for member in self.members]
        return hashes[0] if len(hashes) == 1 else digest([*hashes, *map(str, self.weights)])

    def layers(self, student: Classifier, wanted: list[str]) -> list[tuple[str, ...]]:
        """Where to look in the student and in each member, layer by layer.

        That is --layers (`wanted`), or the stages that timm names. Raises Problem where a layer is
        given for another number of networks.
        """
        networks = [student, *(member.trained.network for member in self.members)]
        if not wanted:
            named = [network.stages() for network in networks]
            depth = min(map(len, named))
            return [names[-depth:] for names in named]
        rows = []
        for text in wanted:
            names = text.split(":")
            if len(names) not in (1, 2, len(networks)):
                raise Problem(
                    f"layer '{text}' in --layers: names {len(names)} modules for"
                    f" {len(networks)} networks; give one name for all, STUDENT:TEACHER, or one for"
                    " each"
                )
            if len(names) != len(networks):
                names = [names[0], *[names[-1]] * len(self.members)]
            rows.append(names)
        return [tuple(names) for names in zip(*rows)]

    def try_images(self, images: torch.Tensor) -> None:
        """Raise Problem for a member that cannot look at images [B, 3, S, S] like these."""
        for member in self.members:
            network = member.trained.network
            network.module.eval()
            try:
                with torch.inference_mode():
                    network(images[:1])
            except (RuntimeError, ValueError, AssertionError) as error:
                why = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
                raise Problem(
                    f"teacher {member.name} ({member.source}): cannot look at pictures of"
                    f" {images.shape[-1]} pixels ({why}); give another --image-size or another"
                    " teacher"
                ) from None

    def on(self, views: Views, precision: Precision, layers: list[tuple[str, ...]]) -> BatchTeacher:
        """What teaches on some views. `layers` of each member: to show their features, too."""
        if not self.members:
            correct = self.plan.distribution.correct
            return LabelDistribution(self.classes, 1 / self.classes if correct is None else correct)
        if layers:
            observed = [
                ObservedNetwork(member.trained.network, precision, own)
                for member, own in zip(self.members, layers)
            ]
            return ObservedJointTeacher(observed, self.weights, self.device)
        networks = [self._network(member, views, precision) for member in self.members]
        return JointTeacher(networks, self.weights, self.device)

    def _network(self, member: Teacher, views: Views, precision: Precision) -> BatchLogits:
        """A member's stored logits, which fill themselves; with --no-stored-logits the network."""
        network, settings = member.trained.network, self.plan.settings
        if not settings.distillation.stored_logits:
            return LiveNetwork(network, precision)
        key = key_of(network, member.trained.hash, views, precision)
        if key not in self.cache.stores:
            cache_dir = settings.data.cache_dir
            self.cache.stores[key] = StoredLogits(cache_dir, network, key, views, precision)
        return self.cache.stores[key]

    def answers(self, views: Views, check_stop: Callable[[], None]) -> np.ndarray:
        """What each member says of every slot, in order and in float32: logits [M, n, K]."""
        precision = Precision(self.device.type, "off")
        logits = []
        for member in self.members:
            logits.append(
                collect_logits(self._network(member, views, precision), views, check_stop)
            )
        return np.stack(logits)

    def together(self, logits: np.ndarray) -> np.ndarray:
        """The members' answers [M, n, K] as one: log of the mean probability, shifted, [n, K]."""
        return losses.mixture(torch.from_numpy(logits), torch.tensor(self.weights), 1.0).numpy()

    def judge(self, views: Views, check_stop: Callable[[], None]) -> np.ndarray:
        """What the members say together of every slot: [n, K]."""
        return self.together(self.answers(views, check_stop))

    def check_unchanged(self, entry: dict) -> None:
        """Raise Problem (4) where a run continues with other teachers than it began with.

        entry: what the run's saved state says of its teachers.
        """
        if entry["hash"] != self.hash:
            raise Problem(
                f"teacher {self.plan.teacher_name}: its weights are {self.hash}, the run began with"
                f" {entry['hash']}; restore that teacher, or give --tag NAME to begin anew",
                BAD_CHECKPOINT,
            )
