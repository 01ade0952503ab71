"""A run, as its settings mean it: its networks, phases, knowledge and teachers.

`resolve` makes a plan, without torch. Nothing that is given one reads a mode's name, or asks which
loss a phase's word stands for.
"""

from dataclasses import dataclass
from pathlib import Path

from kd.config.settings import DistillSettings, TeacherSettings
from kd.methods import KNOWLEDGE, Kind


@dataclass(frozen=True)
class KnowledgePlan:
    """The kinds of knowledge that a phase passes on.

    weights       kind -> weight of its term; empty where the phase passes on none
    temperatures  of several the mean of a kind's losses
    options       kind -> its own hyper-parameters
    """

    weights: dict[str, float]
    temperatures: tuple[float, ...]
    options: dict[str, dict]

    @property
    def kinds(self) -> dict[str, Kind]:
        return {name: KNOWLEDGE[name] for name in self.weights}

    @property
    def inside(self) -> list[str]:
        """Those kinds that lie in feature maps."""
        return sorted(name for name, kind in self.kinds.items() if kind.inside)


@dataclass(frozen=True)
class PhasePlan:
    """A phase: which images, which loss.

    shows_pool    all images that may be seen, without their labels; otherwise the train split
    reads_labels  whether labels are in its loss
    knowledge     what the teachers pass on in it; empty where they are not in its loss
    """

    name: str
    shows_pool: bool
    reads_labels: bool
    knowledge: KnowledgePlan
    lr: float


def kinds_of(phases: tuple[PhasePlan, ...]) -> dict[str, Kind]:
    """The kinds of knowledge that phases pass on, by name."""
    kinds = {}
    for phase in phases:
        kinds |= phase.knowledge.kinds
    return kinds


@dataclass(frozen=True)
class TeacherPlan:
    """A network that teaches, and where it comes from: a file, a run, or a seed.

    file    of --teacher-checkpoint
    plan    the run that trains it, where there is no file
    places  the folders in which that run is looked for; it is trained in the first of them
    seed    draws the weights of a network that is never trained
    """

    name: str
    file: str | None = None
    plan: "Plan | None" = None
    places: tuple[Path, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Distribution:
    """A teacher that is no network: the probability of the true class; None: all classes alike."""

    correct: float | None


@dataclass(frozen=True)
class Plan:
    """A run, as its settings mean it.

    mode          its name, for messages; `teacher` for a network trained on labels alone
    student       the network that is trained
    weights_seed  draws its fresh weights
    phases        in their order
    alpha         weight of the knowledge beside the labels
    teachers      the networks that teach; empty where none does
    shares        how much each of them counts; they sum to 1
    distribution  what teaches where no network does; None in a run without a teacher
    teacher_name  what the teachers are called together; empty in a run without a teacher
    unused        settings that the run does not look at, whatever their values
    idle          flags among them that were given another value than their default
    remarks       for the user
    """

    settings: TeacherSettings | DistillSettings
    folder: Path
    mode: str
    student: str
    weights_seed: int
    phases: tuple[PhasePlan, ...]
    alpha: float
    teachers: tuple[TeacherPlan, ...]
    shares: tuple[float, ...]
    distribution: Distribution | None
    teacher_name: str
    unused: frozenset[str]
    idle: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def distils(self) -> bool:
        """Whether it is a student's run: the settings of distill.py, with a teacher of any kind."""
        return isinstance(self.settings, DistillSettings)

    @property
    def stop_at(self) -> float | None:
        """The validation accuracy past which training stops: that of a defective teacher."""
        return None if self.distils else self.settings.teacher.stop_at_val_accuracy

    @property
    def shows_pool(self) -> bool:
        """Whether the run sees images without labels."""
        return any(phase.shows_pool for phase in self.phases)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds of knowledge of all phases."""
        return kinds_of(self.phases)

    @property
    def inside(self) -> list[str]:
        """The kinds of knowledge, of all phases, that lie in feature maps."""
        return sorted(name for name, kind in self.kinds.items() if kind.inside)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which both networks are softened; empty where no phase passes knowledge on."""
        found = [phase.knowledge.temperatures for phase in self.phases if phase.knowledge.weights]
        return found[0] if found else ()
