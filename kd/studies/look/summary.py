"""What the maps of one run, or of several seeds of it, say: agreement, pointing and the control."""

from collections.abc import Sequence

import numpy as np

from kd.reports.resampled import ratio
from kd.reports.resampling import Resamples
from kd.reports.text import NOT_KNOWN
from kd.studies.look.agreement import CORRELATION, SHARE, difference, mean
from kd.studies.look.randomized import ALL
from kd.studies.outputs import left_out_lines
from kd.system.markdown import table

RANDOM = "random: "  # begins the name of the scores of a step of the cascade
POINTING = "pointing: "  # begins the name of the scores of a network
PAIRS = {
    "student_teacher": "student and teacher",
    "alone_teacher": "network alone and teacher",
    "student_alone": "student and network alone",
    "other_image": "student and teacher, who sees another image of the class",
    "random_teacher": "student with random weights and teacher",
}
REFERENCES = ("student_teacher", "student_alone")  # what networks with random weights are beside
ROLES = {"teacher": "teacher", "student": "student", "alone": "network alone"}

# name -> a score of each image [N], nan where it has none. Names are those of PAIRS, and RANDOM or
# POINTING with a step or a role. With random weights, the score of each draw of them [draws, N].
Scores = dict[str, np.ndarray]


def summarise(runs: Sequence[Scores], resamples: Resamples, boxes: dict | None) -> dict:
    """Return `agreement`, `pointing` and `sanity` of runs that differ in their seed only.

    boxes  `images`, `area` and `centre`: the images with a box, the mean share of the image that it
           covers, and the share of images whose middle is in it; None if there are no boxes
    """
    agreement = {}
    for name in PAIRS:
        agreement[name] = mean(_of(runs, name), resamples, CORRELATION)
    agreement["difference"] = _gap(runs, "student_teacher", "alone_teacher", resamples)
    agreement["of_the_image"] = _gap(runs, "student_teacher", "other_image", resamples)
    agreement["says"] = _says_of_images(agreement["of_the_image"])
    return {
        "agreement": agreement,
        "pointing": _pointing(runs, resamples, boxes),
        "sanity": _sanity(runs, resamples),
    }


def _of(runs: Sequence[Scores], name: str) -> list[np.ndarray]:
    """Return the scores of each run that has them, each [N].

    Draws of random weights take the place of the seeds if there is one run, so that their variance
    counts; of several runs, their mean is taken.
    """
    found = [scores[name] for scores in runs if name in scores]
    if len(found) == 1 and found[0].ndim == 2:
        return list(found[0])
    return [own if own.ndim == 1 else _mean_of_draws(own) for own in found]


def _mean_of_draws(own: np.ndarray) -> np.ndarray:
    known = np.isfinite(own)
    return ratio(np.where(known, own, 0.0).sum(0), known.sum(0))


def _gap(
    runs: Sequence[Scores], first: str, second: str, resamples: Resamples, ends=CORRELATION
) -> dict:
    """Return the difference of two scores over the runs that have both."""
    both = [scores for scores in runs if first in scores and second in scores]
    return difference(_of(both, first), _of(both, second), resamples, ends)


def _pointing(runs: Sequence[Scores], resamples: Resamples, boxes: dict | None) -> dict:
    if boxes is None:
        return {"reason": "the data set has no columns box_x, box_y, box_width and box_height"}
    if not boxes["images"]:
        return {"reason": "no test image has a box"}
    found = dict(boxes)
    for role in ROLES:
        found[role] = mean(_of(runs, POINTING + role), resamples, SHARE)
    for name, role in (("student_minus_alone", "alone"), ("student_minus_teacher", "teacher")):
        found[name] = _gap(runs, f"{POINTING}student", POINTING + role, resamples, SHARE)
    return found | {"reason": None}


def _sanity(runs: Sequence[Scores], resamples: Resamples) -> dict:
    """Return the rank correlation of each step of the cascade with the student's own maps.

    `alike` is that of two trained networks (`reference`) on the same images, and `difference` is
    `alike` minus that of the last step.
    """
    steps = []
    for name in runs[0]:
        if name.startswith(RANDOM):
            own = mean(_of(runs, name), resamples, CORRELATION)
            own["seeds"] = sum(name in scores for scores in runs)  # not draws
            steps.append({"random": name.removeprefix(RANDOM), **own})
    reference = next((name for name in REFERENCES if any(name in own for own in runs)), None)
    found = {"draws": len(runs[0][RANDOM + ALL]), "steps": steps, "reference": reference}
    found |= {"alike": None, "difference": None}
    if reference:
        both = [scores for scores in runs if reference in scores]
        random = _of(both, RANDOM + ALL)
        trained = _of(both, reference)
        if len(both) == 1:
            trained = trained * len(random)
        same = [np.where(np.isfinite(own), one, np.nan) for one, own in zip(trained, random)]
        seeds = {"seeds": len(both)}
        found["alike"] = mean(same, resamples, CORRELATION) | seeds
        found["difference"] = difference(trained, random, resamples, CORRELATION) | seeds
    return found | {"says": _says(found)}


def _says_of_images(gap: dict) -> str | None:
    """Return whether the agreement is about the image; None if it is not known."""
    if gap["low"] is None:
        return None
    if gap["low"] > 0:
        return (
            f"Student and teacher agree more on the same image than on two of the class (by"
            f" {gap['value']:.3f}): this part of their agreement is about what is in the image."
        )
    return (
        "Student and teacher are not shown to agree more on the same image than on two of the"
        " class: their agreement may be one on the places that are usual for the class."
    )


def _says(sanity: dict) -> str:
    """Return what the control means, in one or two sentences."""
    last, gap = sanity["steps"][-1], sanity["difference"]
    if last["value"] is None:
        return f"The control is undefined: {last['reason']}."
    begin = (
        f"With all weights random ({sanity['draws']} draws), the student's maps have a rank"
        f" correlation of {last['value']:.3f} with its own"
    )
    if gap is None or gap["low"] is None:
        return f"{begin}; 1 would mean that they do not depend on what was learned."
    begin += (
        f", and those of {PAIRS[sanity['reference']]} have {sanity['alike']['value']:.3f} on the"
        " same images."
    )
    if gap["low"] > 0:
        return (
            f"{begin} The maps of two trained networks are more alike: they show something that was"
            " learned, and not only the image and the architecture."
        )
    if last["low"] is None or last["low"] <= 0:
        return (
            f"{begin} The maps depend on the weights, but those of two trained networks are not"
            " shown to be more alike than that."
        )
    return (
        f"{begin} A network that has learned nothing is as much like the student: these maps do not"
        " show what was learned."
    )


def markdown(heading: str, lines: Sequence[str], result: dict) -> list[str]:
    """Return the lines of Markdown for one result, which is also readable in a terminal."""
    text = [f"# {heading}", "", *lines, ""]
    text += _agreement_lines(result["agreement"])
    text += _pointing_lines(result["pointing"])
    rows = []
    for step in result["sanity"]["steps"]:
        rows.append([step["random"], *_cells(step)])
    header = ["random weights of the student", "rank correlation with its own maps", "images"]
    text += [*table(header, rows, aligned=True), "", result["sanity"]["says"], ""]
    return text + left_out_lines(result.get("left_out", []))


def _agreement_lines(agreement: dict) -> list[str]:
    rows = []
    for name, words in PAIRS.items():
        if agreement[name]["value"] is not None:
            rows.append([words, *_cells(agreement[name])])
    for name, words in (
        ("difference", "student and teacher, minus network alone and teacher"),
        ("of_the_image", "student and teacher, minus those of different images"),
    ):
        if agreement[name]["value"] is not None:
            rows.append([words, *_cells(agreement[name], "+")])
    if not rows:
        return ["There is no other network whose maps could be compared.", ""]
    lines = [*table(["maps of", "rank correlation [95 %]", "images"], rows, aligned=True), ""]
    return [*lines, agreement["says"], ""] if agreement["says"] else lines


def _pointing_lines(pointing: dict) -> list[str]:
    if pointing["reason"]:
        return [f"Pointing game: not played, because {pointing['reason']}.", ""]
    rows = []
    for role, words in ROLES.items():
        if pointing[role]["value"] is not None:
            rows.append([words, *_cells(pointing[role])])
    for name, words in (
        ("student_minus_alone", "student minus network alone"),
        ("student_minus_teacher", "student minus teacher"),
    ):
        if pointing[name]["value"] is not None:
            rows.append([words, *_cells(pointing[name], "+")])
    chance = (
        f"By chance: {pointing['area']:.3f} for a pixel drawn at random, {pointing['centre']:.3f}"
        " for the middle of the image."
    )
    header = ["maximum in a box", "share [95 %]", "images"]
    return [*table(header, rows, aligned=True), "", chance, ""]


def _cells(one: dict, sign: str = "") -> list[str]:
    """Return the texts of a value with its interval, and of the number of images."""
    if one["value"] is None:
        return [NOT_KNOWN, NOT_KNOWN]
    text = f"{one['value']:{sign}.3f}"
    if one["low"] is not None:
        text += f" [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]"
    return [text, str(one["images"])]
