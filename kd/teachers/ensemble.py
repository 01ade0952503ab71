"""The teachers of a run at their work: asked, judged, introduced.

One network, several together, or a label distribution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kd import losses, models
from kd.config.plan import origin_of, teacher_of
from kd.config.settings import DistillSettings
from kd.data.dataset import Dataset
from kd.data.index import digest
from kd.data.views import Views
from kd.models import Classifier
from kd.reports import metrics
from kd.system.console import log
from kd.system.devices import Precision
from kd.system.errors import BAD_CHECKPOINT, DIVERGED, Problem
from kd.teachers import functions, model_file
from kd.teachers.functions import TeacherFunction
from kd.teachers.stored_logits import StoredLogits, key_of


@dataclass(frozen=True)
class Member:
    """A network that teaches, where it comes from, and how its training differs from its student's,
    in words.
    """

    name: str
    trained: model_file.Trained
    source: str
    differences: list[str]


class Panel:
    """The teachers of a run; `members` is empty where a label distribution teaches."""

    def __init__(
        self,
        settings: DistillSettings,
        members: list[Member],
        dataset: Dataset,
        device: torch.device,
        stores: dict[str, StoredLogits],
        leave: Callable[[], None],
    ):
        self.settings, self.members, self.name = settings, members, teacher_of(settings)
        self.classes, self.device, self.stores, self.leave = (
            len(dataset.index.classes),
            device,
            stores,
            leave,
        )
        weights = settings.distillation.teacher_weights or [1.0] * len(members)
        self.weights = [weight / sum(weights) for weight in weights]
        for member in members:
            member.trained.network.to(device)

    @property
    def hash(self) -> str:
        """A name for all weights that teach."""
        hashes = [member.trained.hash for member in self.members]
        return hashes[0] if len(hashes) == 1 else digest([*hashes, *map(str, self.weights)])

    def layers(self, student: Classifier, wanted: list[str]) -> list[tuple[str, ...]]:
        """Where to look in the student and in each member, layer by layer: --layers, or the stages
        that timm names.

        Raises Problem where a layer is given for another number of networks.
        """
        networks = [student, *(member.trained.network for member in self.members)]
        if not wanted:
            named = [network.stages() for network in networks]
            return [names[-min(map(len, named)) :] for names in named]
        rows = []
        for text in wanted:
            names = text.split(":")
            if len(names) not in (1, 2, len(networks)):
                raise Problem(
                    f"layer '{text}' in --layers: names {len(names)} modules for {len(networks)}"
                    " networks; give one name for all, STUDENT:TEACHER, or one for each"
                )
            rows.append(
                names
                if len(names) == len(networks)
                else [names[0], *[names[-1]] * len(self.members)]
            )
        return [tuple(names) for names in zip(*rows)]

    def try_batch(self, images: torch.Tensor) -> None:
        """Raise Problem for a teacher that cannot look at pictures like these: images [B, 3, S, S]."""
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

    def ask(
        self, views: Views, precision: Precision, layers: list[tuple[str, ...]]
    ) -> TeacherFunction:
        """What all say of some views, with features where `layers` names any (those of each
        member).
        """
        if not self.members:
            uniform = origin_of(self.settings).distribution == "uniform"
            return functions.virtual(
                self.classes,
                1 / self.classes if uniform else self.settings.distillation.correct_probability,
            )
        if layers:
            networks = [
                functions.observed(member.trained.network, precision, own)
                for member, own in zip(self.members, layers)
            ]
        else:
            networks = [
                functions.without_features(self._network(member, views, precision))
                for member in self.members
            ]
        return functions.together(networks, self.weights, self.device)

    def _network(self, member: Member, views: Views, precision: Precision) -> functions.Network:
        """A member for some views: its stored logits, which fill themselves, or with
        --no-stored-logits the network.
        """
        network = member.trained.network
        if not self.settings.distillation.stored_logits:
            return functions.live(network, precision)
        key = key_of(network, member.trained.hash, views, precision)
        if key not in self.stores:
            self.stores[key] = StoredLogits(
                self.settings.data.cache_dir, network, key, views, precision
            )
        return self.stores[key]

    def answers(self, views: Views) -> np.ndarray:
        """What each member says of every slot, in order and in float32: logits [M, n, K]."""
        precision = Precision(self.device.type, "off")
        return np.stack(
            [
                functions.answers(self._network(member, views, precision), views, self.leave)
                for member in self.members
            ]
        )

    def judge(self, views: Views) -> np.ndarray:
        """What they say together of every slot: the logarithm of the mean probability but for a
        shift, [n, K].
        """
        return self._together(self.answers(views))

    def _together(self, logits: np.ndarray) -> np.ndarray:
        return losses.mixture(torch.from_numpy(logits), torch.tensor(self.weights), 1.0).numpy()

    def introduce(
        self,
        judged: tuple[Views, Views],
        ratio: tuple[float | None, str | None],
        remarks: list[str],
    ) -> dict:
        """Print, and return for the report, how good the teachers are and how their term weighs
        against the label's.

        judged: the validation and the test part. Raises Problem (3) for a teacher whose logits are
        not finite.
        """
        about = {
            "name": self.name,
            "members": [],
            "hash": self.hash,
            "valid_accuracy": None,
            "test_accuracy": None,
            "disagreement": None,
            "gradient_ratio": ratio[0],
            "gradient_reason": ratio[1],
            "remarks": remarks,
        }
        if self.members:
            logits, labels = (
                [self.answers(views) for views in judged],
                [views.labels.numpy() for views in judged],
            )
            for number, member in enumerate(self.members):
                own = [
                    self._accuracy(of[number], truth, member) for of, truth in zip(logits, labels)
                ]
                about["members"].append(_account(member, self.weights[number], *own))
                log(f"teacher {member.name} ({member.source}): validation accuracy {own[0]:.4f}")
            about |= {
                f"{part}_accuracy": metrics.accuracy(self._together(of), truth)
                for part, of, truth in zip(("valid", "test"), logits, labels)
            }
        if len(self.members) > 1:
            about["disagreement"] = disagreement(logits[1].argmax(2))
            log(
                f"teachers together: validation accuracy {about['valid_accuracy']:.4f}; two of them"
                f" differ on {100 * about['disagreement']:.1f} % of the test images"
            )
        if ratio[0] is not None:
            how = self.settings.distillation
            log(
                "gradient of the knowledge over that of the label term, first batch:"
                f" {ratio[0]:.3g} (alpha {how.alpha:g})"
            )
        for remark in [*(text for member in self.members for text in member.differences), *remarks]:
            log(f"note: {remark}")
        return about

    def _accuracy(self, logits: np.ndarray, labels: np.ndarray, member: Member) -> float:
        bad = int((~np.isfinite(logits)).any(1).sum())
        if bad:
            raise Problem(
                f"teacher {member.name} ({member.source}): its logits are not finite for {bad} of"
                f" {len(logits)} images; stopped before step 0 (learning rate"
                f" {self.settings.training.lr:g}); give a teacher whose weights are finite",
                DIVERGED,
            )
        return metrics.accuracy(logits, labels)

    def check_same(self, account: dict) -> None:
        """Raise Problem (4) where a run goes on with other teachers than it began with."""
        if account["hash"] != self.hash:
            raise Problem(
                f"teacher {self.name}: its weights are {self.hash}, the run began with"
                f" {account['hash']}; restore that teacher, or give --tag NAME to begin anew",
                BAD_CHECKPOINT,
            )


def _account(member: Member, weight: float, valid: float, test: float) -> dict:
    found = member.trained
    return {
        "name": member.name,
        "architecture": found.network.architecture,
        "source": member.source,
        "hash": found.hash,
        "split": found.about and found.about["data"]["split_hash"],
        "weight": weight,
        "parameters": models.parameters(found.network.module),
        "valid_accuracy": valid,
        "test_accuracy": test,
        "differences": member.differences,
    }


def disagreement(predicted: np.ndarray) -> float:
    """Share of images on which two teachers predict different classes, mean over all pairs: int [M,
    n] with M > 1.
    """
    pairs = [(first, second) for first in range(len(predicted)) for second in range(first)]
    return float(
        np.mean([(predicted[first] != predicted[second]).mean() for first, second in pairs])
    )
