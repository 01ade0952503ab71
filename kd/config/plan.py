"""The plan of a run: its networks, phases, knowledge and teachers, as the settings imply them.

`resolve` makes a plan without importing torch. Code that receives a plan does not depend on the
name of the mode, or on the names of losses in the tables.
"""

from dataclasses import dataclass
from pathlib import Path

from kd.config.settings import Data, DistillSettings, TeacherSettings
from kd.config.training_settings import Training
from kd.knowledge import KNOWLEDGE, Kind


@dataclass(frozen=True)
class KnowledgePlan:
    """The kinds of knowledge that a phase transfers.

    weights       kind -> weight of its term; empty if the phase transfers no knowledge
    temperatures  with several, the loss of a kind is the mean over them
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
        """The names of the kinds that are in feature maps, sorted."""
        return sorted(name for name, kind in self.kinds.items() if kind.inside)


@dataclass(frozen=True)
class PhasePlan:
    """The images and the loss of a phase.

    name          name of the phase in reports and messages
    shows_pool    True: all images that may be used in training, without their labels; False: the
                  labelled train split
    half_labelled whether one half of each batch is of the train split, and the other half of all
                  images without their labels
    teaches_rest  whether the knowledge is only of the half without labels
    ramp_up       share of the steps in which the weight of the knowledge rises
    reads_labels  whether the loss has a term of labels
    knowledge     what the teachers transfer; empty if the loss has no term of teachers
    lr            learning rate
    keeps_start   whether the result of the phase before is kept if no epoch of this one is better
                  on the validation split
    """

    name: str
    shows_pool: bool
    reads_labels: bool
    knowledge: KnowledgePlan
    lr: float
    half_labelled: bool = False
    keeps_start: bool = False
    teaches_rest: bool = False
    ramp_up: float = 0.0

    @property
    def uses_pool(self) -> bool:
        """Whether the phase uses images without their labels."""
        return self.shows_pool or self.half_labelled


def kinds_of(phases: tuple[PhasePlan, ...]) -> dict[str, Kind]:
    """Return the kinds of knowledge that phases transfer, by name."""
    kinds = {}
    for phase in phases:
        kinds |= phase.knowledge.kinds
    return kinds


@dataclass(frozen=True)
class TeacherPlan:
    """A network that teaches, and its origin: a file, a run, or a seed.

    name    name of the network
    file    file in --teacher-checkpoint
    plan    plan of the run that trains the network, if there is no file
    places  folders in which that run is searched for; it is trained in the first of them
    seed    seed of the weights of a network that is never trained
    """

    name: str
    file: str | None = None
    plan: "Plan | None" = None
    places: tuple[Path, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Distribution:
    """A teacher that is not a network but fixed class probabilities.

    correct  probability of the true class, with the rest divided equally among the others; None:
             the same probability for every class
    """

    correct: float | None


@dataclass(frozen=True)
class Follower:
    """A teacher that is the exponential moving average of its student's weights.

    decay      of the average
    delivered  whether it is the network that is judged and delivered
    """

    decay: float
    delivered: bool


@dataclass(frozen=True)
class ViewsPlan:
    """The strengths of the views of a run: keys of AUGMENTATIONS.

    student      of the student; `teacher` in the labelled half of batches
    teacher      of its teachers
    independent  whether the teachers' views are drawn apart from those of the student
    """

    student: str
    teacher: str
    independent: bool = False


@dataclass(frozen=True)
class Plan:
    """The plan of a run, as its settings imply it.

    settings      the settings of the run
    folder        folder of the run
    state_folder  folder with the saved state; of several students that are trained at once, the
                  first one's
    mode          name of the mode, for messages; `teacher` for a network trained on labels only
    student       name of the network that is trained
    peers         names of the students that are trained at once with it and teach it; usually empty
    weights_seed  seed of its random initial weights
    dropout_seed  seed of its dropout
    phases        phases of training, in order
    alpha         weight of the knowledge; the weight of the labels is 1 - alpha
    teachers      networks that teach; empty if there are none
    shares        weight of each teacher; they sum to 1
    distribution  class probabilities that replace a teacher network; None if there is a network or
                  no teacher at all
    follower      teacher that is the average of its student's weights; None if there is another one
                  or no teacher at all
    views         which views of an image teachers and student see
    teacher_name  name of all teachers together; empty in a run without a teacher
    teacher_words what the data of the teachers have of their own, e.g. `all labels, 224 px`; empty
                  if they are those of the student
    teacher_data  data settings of the teachers
    unused        settings that the run does not use, whatever their values
    idle          flags of unused settings whose value is not the default
    remarks       remarks for the user, each a sentence
    """

    settings: TeacherSettings | DistillSettings
    folder: Path
    state_folder: Path
    mode: str
    student: str
    peers: tuple[str, ...]
    weights_seed: int
    dropout_seed: int
    phases: tuple[PhasePlan, ...]
    alpha: float
    teachers: tuple[TeacherPlan, ...]
    shares: tuple[float, ...]
    distribution: Distribution | None
    follower: Follower | None
    views: ViewsPlan
    teacher_name: str
    teacher_words: str
    teacher_data: Data
    unused: frozenset[str]
    idle: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def distils(self) -> bool:
        """Whether the run has a teacher of any kind, and so the settings of distill.py."""
        return isinstance(self.settings, DistillSettings)

    @property
    def stop_at(self) -> float | None:
        """The validation accuracy above which the training of a defective teacher stops."""
        return None if self.distils else self.settings.teacher.stop_at_val_accuracy

    @property
    def select(self) -> str:
        """The metric of the validation split by which an epoch is better than another."""
        return Training.select if "select" in self.unused else self.settings.training.select

    @property
    def ema(self) -> float | None:
        """The decay of the average that is delivered instead of the trained weights; None: none.

        It is not that of a teacher, which may be delivered itself.
        """
        return None if "ema" in self.unused else self.settings.training.ema

    @property
    def averages(self) -> int:
        """Number of averages of the student's weights that the run keeps."""
        return (self.ema is not None) + (self.follower is not None)

    @property
    def weighs_knowledge(self) -> bool:
        """Whether the knowledge is weighted by class, like the labels."""
        return (
            self.distils
            and self.settings.transfer.balance_knowledge
            and "balance_knowledge" not in self.unused
        )

    @property
    def shows_pool(self) -> bool:
        """Whether the run uses images without their labels."""
        return any(phase.uses_pool for phase in self.phases)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds of knowledge of all phases, by name."""
        return kinds_of(self.phases)

    @property
    def inside(self) -> list[str]:
        """The names of the kinds of knowledge of all phases that are in feature maps, sorted."""
        return sorted(name for name, kind in self.kinds.items() if kind.inside)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures that soften both networks; empty if no phase transfers knowledge."""
        found = [phase.knowledge.temperatures for phase in self.phases if phase.knowledge.weights]
        return found[0] if found else ()
