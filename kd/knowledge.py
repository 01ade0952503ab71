"""The kinds of knowledge as data: what is transferred, from where, and by which loss.

This module does not import torch, so that --help and the report of a mistyped flag are fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

MANY_ENOUGH = 16  # images per step that a loss needs to compare them with each other


@dataclass(frozen=True)
class KindOption:
    """A hyper-parameter of one kind of knowledge; its flag is --KIND-NAME, e.g. --dkd-beta.

    of_regressor  whether the kind's regressor takes it instead of the loss
    """

    name: str
    default: float | str
    help: str
    above: float | None = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None
    of_regressor: bool = False


@dataclass(frozen=True)
class Kind:
    """A row of the table of knowledge: what is transferred, from where, and by which loss.

    what           the knowledge in words
    location       `output`: the logits; `stages`: the feature maps at --layers, for which the
                   teacher has to run in every step
    transfer       the loss in words
    weight         default weight of the term within alpha's share (see --knowledge-weights). The
                   weights in the papers are meant for 100 or 1000 classes, where CE starts at
                   log K = 4.6 or 6.9; with K = 7 it starts at 1.9. The weights here give every kind
                   about the same influence as `kd` at T = 4: the norm of its gradient with respect
                   to the student's weights is 0.7 to 4 times that of CE (tests/benchmarks/pull.py)
    source         arXiv number of the paper
    loss           name of the function in `kd.losses`, which is called as
                   loss(student, teacher, [labels=], [temperature=], [weights=], **options)
    options        hyper-parameters of this kind, passed by name to the loss or to the regressor
    softens        whether the loss takes a temperature
    labels         whether the loss takes the labels; such a kind cannot be used in a phase that
                   does not read labels
    per_image      whether the loss is a mean over images and takes a weight for each of them. Other
                   losses compare the images of a batch with each other
    maps           whether the features must be maps [B, C, H, W]
    positions      whether the loss compares the positions of a map; a map with a single position
                   then has nothing to compare
    regressor      name of the class in `kd.training.regressors` whose module is trained together
                   with the student. The student's features go through it, and the loss takes what
                   it returns in their place. Empty: the loss takes the features
    hard           whether the loss takes the one class of an image from the teacher, which a mixed
                   image does not have
    counts         name of the function in `kd.losses` that returns which images the loss uses, bool
                   [B], called as counts(teacher, **options); their share is logged as KIND-share.
                   Empty: it uses all
    least_classes  number of classes below which there is nothing to transfer
    cautions       function of (classes, images per step, temperatures) that returns notes for the
                   user, each a sentence
    """

    what: str
    location: str
    transfer: str
    weight: float
    source: str
    loss: str
    options: tuple[KindOption, ...] = ()
    softens: bool = False
    labels: bool = False
    per_image: bool = False
    maps: bool = False
    positions: bool = False
    regressor: str = ""
    hard: bool = False
    counts: str = ""
    least_classes: int = 2
    cautions: Callable[[int, int, tuple[float, ...]], list[str]] | None = None

    @property
    def inside(self) -> bool:
        """Whether the knowledge is in feature maps rather than in the output."""
        return self.location == "stages"

    def function(self, name: str = "") -> Callable:
        """Return the loss, or another function of `kd.losses`.

        It is imported here because the table must not import torch.
        """
        from kd import feature_losses, losses

        return getattr(feature_losses if self.inside else losses, name or self.loss)

    def options_of(self, values: Mapping, regressor: bool) -> dict:
        """Return the values of the options that the regressor takes, or that the loss takes.

        values  name of an option -> its value; options that are missing keep their defaults
        """
        names = [one.name for one in self.options if one.of_regressor == regressor]
        return {name: values[name] for name in names if name in values}


def option_key(kind: str, option: KindOption) -> str:
    """Return the name of a kind's hyper-parameter among the settings, e.g. `dkd_beta`."""
    return f"{kind}_{option.name}".replace("-", "_")


def _few_images(kind: str, batch: int) -> list[str]:
    """Return a caution for a loss that compares the images of a step if there are few of them."""
    if batch >= MANY_ENOUGH:
        return []
    return [
        f"{kind}: only the {batch} images of a step are compared with each other. Use"
        f" --batch-size {MANY_ENOUGH} or more."
    ]


def _dist_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    found = []
    if classes == 2:
        found.append(
            "dist: with 2 classes, the correlation over classes is always 1 or -1 and teaches"
            " nothing. Only the correlation over images is used."
        )
    return found + _few_images("dist", batch)


def _similarity_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("similarity", batch)


def _pkt_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("pkt", batch)


def _rkd_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("rkd", batch)


def _standardized_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    from kd.losses import standardized_cap

    caps = [f"{standardized_cap(classes, t):.3f} at T = {t:g}" for t in temperatures]
    return [
        f"standardized: with {classes} classes, no logit exceeds {(classes - 1) ** 0.5:.2f}, so"
        f" the teacher's probability of a class is at most {', '.join(caps)}"
        f" ({standardized_cap(classes, 1.0):.3f} at T = 1)."
    ]


KNOWLEDGE = {
    "kd": Kind(
        what="class probabilities",
        location="output",
        transfer="T^2 KL",
        weight=1.0,
        source="1503.02531",
        loss="kd",
        per_image=True,
        softens=True,
    ),
    "logit-mse": Kind(
        what="logits",
        location="output",
        transfer="half the squared distance",
        weight=0.15,
        source="1312.6184",
        loss="logit_mse",
        per_image=True,
    ),
    "dkd": Kind(
        what="class probabilities, true class and other classes separately",
        location="output",
        transfer="T^2 (TCKD + beta NCKD)",
        weight=1.0,
        source="2203.08679",
        loss="dkd",
        per_image=True,
        options=(
            KindOption("beta", 1.0, "dkd: weight of the other classes, NCKD", least=0, most=1000),
        ),
        softens=True,
        labels=True,
        least_classes=3,
    ),
    "dist": Kind(
        what="relations between classes and between images",
        location="output",
        transfer="T^2 (1 - correlation)",
        weight=0.1,
        source="2205.10536",
        loss="dist",
        softens=True,
        cautions=_dist_cautions,
    ),
    "standardized": Kind(
        what="standardized logits",
        location="output",
        transfer="T^2 KL",
        weight=3.0,
        source="2403.01427",
        loss="standardized",
        per_image=True,
        softens=True,
        cautions=_standardized_cautions,
    ),
    "probability-mse": Kind(
        what="class probabilities",
        location="output",
        transfer="squared distance of probabilities",
        weight=8.0,
        source="1703.01780",
        loss="probability_mse",
        per_image=True,
    ),
    "pseudo-label": Kind(
        what="most probable class, where its probability is high",
        location="output",
        transfer="CE with the teacher's class where its probability is at least the threshold",
        weight=1.0,
        source="2001.07685",
        loss="pseudo_label",
        per_image=True,
        hard=True,
        counts="confident",
        options=(
            KindOption(
                "threshold",
                0.95,
                "pseudo-label: probability from which the teacher's class is a label",
                least=0,
                most=1,
            ),
        ),
    ),
    "attention": Kind(
        what="where in the image the features are strong",
        location="stages",
        transfer="squared distance between normalized attention maps",
        weight=20.0,
        source="1612.03928",
        loss="attention",
        per_image=True,
        maps=True,
        positions=True,
    ),
    "similarity": Kind(
        what="which images of a batch are similar",
        location="stages",
        transfer="squared distance between similarity matrices",
        weight=23.0,
        source="1907.09682",
        loss="similarity",
        cautions=_similarity_cautions,
    ),
    "pkt": Kind(
        what="which images of a batch are neighbours",
        location="stages",
        transfer="KL of neighbour probabilities",
        weight=500.0,
        source="1803.10837",
        loss="pkt",
        options=(
            KindOption(
                "width",
                0.0,
                "pkt: sigma of the Gaussian kernel; 0: cosine kernel",
                least=0,
                most=2,
            ),
        ),
        cautions=_pkt_cautions,
    ),
    "rkd": Kind(
        what="distances and angles between the images of a batch",
        location="stages",
        transfer="Huber loss of distances and of cosines of angles",
        weight=25.0,
        source="1904.05068",
        loss="rkd",
        options=(
            KindOption("distance", 1.0, "rkd: weight of the distances", least=0, most=1000),
            KindOption("angle", 2.0, "rkd: weight of the angles", least=0, most=1000),
        ),
        cautions=_rkd_cautions,
    ),
    "hint": Kind(
        what="feature maps",
        location="stages",
        transfer="half the squared distance after a 1x1 projection",
        weight=50.0,
        source="1412.6550",
        loss="hint",
        per_image=True,
        maps=True,
        regressor="Projectors",
    ),
    "vid": Kind(
        what="feature maps, with the uncertainty of each channel",
        location="stages",
        transfer="-log likelihood of a Gaussian around a 1x1 projection",
        weight=300.0,
        source="1904.05835",
        loss="vid",
        per_image=True,
        maps=True,
        regressor="Gaussians",
        options=(
            KindOption(
                "variance",
                5.0,
                "vid: initial variance of each channel",
                least=0.001,
                most=1000,
                of_regressor=True,
            ),
        ),
    ),
}
