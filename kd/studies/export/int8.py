"""The choice of the layers that model.int8.onnx has in float.

If 8 bits in all layers lose more than the run's margin, the first and the last layer are left in
float. The validation split decides which of the two files is kept; both are reported.
"""

from dataclasses import dataclass

import numpy as np

from kd.studies.export.onnx_file import run_onnx
from kd.studies.export.quantised import (
    CALIBRATION_IMAGES,
    first_and_last,
    needs_reduced_range,
    prepared,
    quantised,
)
from kd.studies.export.source import Source
from kd.studies.export.verify import Images, Row, Truth, answers, minus_float, row_of
from kd.system.messages import first_line

FILE = "model.int8.onnx"


@dataclass(frozen=True)
class Variant:
    """A quantised file, and what it predicts.

    float_layers  names of the layers in float
    row, gap      of the test split; the gap is `minus_float`
    tuning        of the validation split: accuracy, that of the file in float, and the mean
                  absolute difference of a probability from it
    """

    content: bytes
    float_layers: tuple[str, ...]
    row: Row
    gap: dict
    tuning: dict

    def as_plain(self) -> dict:
        """Return the variant as plain values."""
        keys = ("bytes", "sha256", "accuracy", "largest_difference", "equal_answers")
        own = {key: getattr(self.row, key) for key in keys}
        layers = list(self.float_layers)
        return {"float_layers": layers, **own, "minus_float": self.gap, "validation": self.tuning}


@dataclass(frozen=True)
class Choice:
    """The variants that were tried, and the one that is kept; none if 8 bits are not possible.

    reason  why there is none
    """

    variants: list[Variant]
    kept: Variant | None
    margin: float
    reason: str | None = None

    def as_plain(self) -> dict:
        """Return the choice as plain values, for verification.json."""
        plain = {
            "kept": None if self.kept is None else self.variants.index(self.kept),
            "variants": [one.as_plain() for one in self.variants],
            "margin": self.margin,
            "loses_more_than_margin": None,
            "calibration_images": CALIBRATION_IMAGES,
            "reduce_range": needs_reduced_range(),
            "reason": self.reason,
        }
        if self.kept is not None:
            plain["loses_more_than_margin"] = loses(self.kept, self.margin)
        return plain


def loses(variant: Variant, margin: float) -> bool:
    """Return whether a quantised file loses more than the margin on the test split."""
    return variant.gap["mean"] < -margin


def choose_int8(source: Source, truth: Truth, content: bytes, threads: int) -> Choice:
    """Quantise model.onnx, whose content is given, and choose the layers that stay in float.

    The second variant is tried if the first one loses more than the margin on the test split or on
    the validation split.
    """
    images = source.dataset.store.gather(source.trained).numpy()
    tuning = _tuning(source, run_onnx(content, threads))

    def variant(layers: tuple[str, ...]) -> Variant:
        own = quantised(model, images, layers)
        run = run_onnx(own, threads)
        found = answers(run, truth.images)
        gap = minus_float(found, truth)
        return Variant(own, layers, row_of(FILE, own, found, truth), gap, _judge(run, tuning))

    try:
        model = prepared(content)
        variants = [variant(())]
        loss = variants[0].tuning["float_accuracy"] - variants[0].tuning["accuracy"]
        if loses(variants[0], source.margin) or loss > source.margin:
            variants.append(variant(first_and_last(model)))
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the tool raises anything for a graph that it does not understand
        return Choice(
            [], None, source.margin, f"onnxruntime cannot quantise it: {first_line(error)}"
        )
    kept = max(variants, key=lambda one: (one.tuning["accuracy"], -one.tuning["mean_difference"]))
    return Choice(variants, kept, source.margin)


def _tuning(source: Source, run) -> Truth:
    """Return the validation split with the answers of the file in float.

    If none of its images is there any more, the images of the train split stand for it.
    """
    rows, labels = source.valid
    if not len(rows):
        rows, labels = source.trained, source.dataset.index.labels[source.trained]
    images = Images(source.dataset.store, rows)
    return Truth(images, labels, np.arange(len(rows)), answers(run, images))


def _judge(run, tuning: Truth) -> dict:
    """Return the accuracy of a function on the validation split, and its distance from float."""
    found = answers(run, tuning.images)
    return {
        "images": len(tuning.labels),
        "accuracy": float((found.argmax(1) == tuning.labels).mean()),
        "float_accuracy": float(tuning.right.mean()),
        "mean_difference": float(np.abs(found - tuning.probabilities).mean()),
    }


def text(choice: Choice) -> str:
    """Say what 8 bits cost, what was tried against it, and which file is kept."""
    if choice.kept is None:
        return f"No {FILE} was written: {choice.reason}."
    lines = []
    points = f"{100 * choice.margin:g}"
    margin = f"{points} {'point' if points == '1' else 'points'}"
    for one in choice.variants:
        where = "all layers in 8 bits"
        if one.float_layers:
            where = f"first and last layer in float ({', '.join(one.float_layers)})"
        lines.append(f"int8, {where}: accuracy {one.row.accuracy:.4f}, {_gap_text(one.gap)}")
    if len(choice.variants) > 1:
        back = 100 * (choice.variants[1].row.accuracy - choice.variants[0].row.accuracy)
        kept = "the second" if choice.kept is choice.variants[1] else "the first"
        lines.append(
            f"8 bits in all layers lose more than the margin of {margin} on the"
            " test or validation split. Float in the first and last layer gives back"
            f" {back:+.2f} points of test accuracy; {FILE} is {kept}, chosen on the validation"
            " split."
        )
    if loses(choice.kept, choice.margin):
        lines.append(f"WARNING: {FILE} loses more than the margin of {margin}.")
    return "\n".join(lines)


def _gap_text(gap: dict) -> str:
    """Return a difference in accuracy in points, with its interval."""
    mean = f"{100 * gap['mean']:+.2f}"
    if gap["low"] is None:
        return f"minus float {mean} points ({gap['reason']})"
    return f"minus float {mean} [{100 * gap['low']:+.2f}, {100 * gap['high']:+.2f}] points"
