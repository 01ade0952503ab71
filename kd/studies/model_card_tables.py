"""The tables and sentences of a card, for its Markdown and for the page of a study.

Names of classes, networks and files go through `quote`, which the caller chooses: `code` for
Markdown, `printable` where the text is escaped elsewhere.
"""

import json
import re
from collections.abc import Callable

from kd.reports.headline import words_of
from kd.reports.measures import MEASURES
from kd.reports.text import NOT_KNOWN
from kd.system.errors import counted, printable

UNKNOWN = "unknown"
SPLIT_HEADER = ("split", "images", "known patients", "images without a known patient")
Quote = Callable[[str], str]
Table = tuple[list[str], list[list[str]]]  # header and rows
_RESIZE = {
    "squash": "to a square, whatever their shape",
    "pad": "so that the longer side fits, then padded to a square",
}
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_CALIBRATION = (
    ("ece", "ECE"),
    ("classwise_ece", "ECE by class"),
    ("adaptive_ece", "ECE, bins of equal counts"),
    ("nll", "NLL"),
    ("brier", "Brier score"),
)
_SIDES = {"teacher": "teacher", "alone": "network alone"}
_FILE_COLUMNS = (
    ("file", "file"),
    ("bytes", "bytes"),
    ("sha256", "SHA-256"),
    ("accuracy", "test accuracy"),
    ("largest_difference", "largest difference of a probability"),
    ("equal_answers", "equal answers"),
    ("latency_1", "latency, 1 image"),
    ("latency_32", "latency, 32 images"),
)


def code(value) -> str:
    """Return a name as code, so that nothing in it is taken for Markdown or HTML."""
    shown = printable(value)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    blank = " " if longest else ""
    return f"{fence}{blank}{shown}{blank}{fence}"


def value_text(one: dict | None, sign: str = "") -> str:
    """Format a metric: `0.9123 [0.8811, 0.9377]`, or `-`. `sign` is "+" for differences."""
    if one is None or one["value"] is None:
        return NOT_KNOWN
    shown = f"{one['value']:{sign}.4f}"
    if one["low"] is None:
        return shown
    return f"{shown} [{one['low']:{sign}.4f}, {one['high']:{sign}.4f}]"


def limits(card: dict) -> list[str]:
    """Return what a reader must know before he believes a figure, each a sentence or two."""
    data = card["data"]
    found = [
        "The figures are of one trained network. Other seeds give other ones; the intervals do not"
        " contain this.",
    ]
    if data["leaks"]:
        patients = counted(data["overlaps"]["patients"], "patient", "patients")
        images = counted(data["overlaps"]["files"], "identical file", "identical files")
        found.append(
            f"The split leaks or may leak: {patients} and {images} are in more than one split."
            " The figures are too high for new patients."
        )
    if data["without_patient"]["test"]:  # None in a report of an earlier version
        found.append(
            "The patients of some or all test images are not known. Such an image counts as a"
            " patient of its own, and the intervals may be too narrow."
        )
    found.append(
        "Groups of people, machines and hospitals were compared only if the report has subgroups."
        " Images of other sources can be predicted far worse; try it on your own first."
    )
    found.append(
        "Weights can remember what they were trained on. Nothing here protects against it."
    )
    return found


def split_rows(data: dict, classes: list[str]) -> list[list[str]]:
    """Return a row for each split: its name, images, patients, and images (patients) by class."""
    rows = []
    for split in data["parts"]:
        images = data["per_class"].get(split) or [NOT_KNOWN] * len(classes)
        patients = data["patients_per_class"].get(split) or [NOT_KNOWN] * len(classes)
        cells = [f"{own} ({of})" for own, of in zip(images, patients)]
        counts = []
        for key in ("distinct_images", "patients", "without_patient"):
            count = data[key].get(split)
            counts.append(NOT_KNOWN if count is None else str(count))
        rows.append([_SPLITS.get(split, split), *counts, *cells])
    return rows


def preprocessing_lines(own: dict) -> list[str]:
    """Return how images are prepared, a line for each step in its order."""
    size = own["image_size"]
    ranges = "8 bits: 0 to 255 become 0 to 1"
    if own["ranges"]:
        texts = []
        for kind, (low, high, rule) in own["ranges"].items():
            texts.append(f"{kind}: {low:g} to {high:g} ({rule})")
        ranges += f"; more bits, {'; '.join(texts)}, become 0 to 1"
    grey = "colour"
    if own["channels"] == 1:
        grey = "grey, repeated in the three channels of the network"
    crop = "none" if own["crop"] == "none" else f"{own['crop']} (the disc of the fundus)"
    return [
        f"Crop: {crop}",
        f"Size: {size} x {size} pixels, resized {_RESIZE.get(own['resize'], own['resize'])}"
        f" (--resize {own['resize']})",
        f"Channels: {grey}",
        f"Range: {printable(ranges)}",
        f"Mean {_numbers(own['mean'])}, standard deviation {_numbers(own['std'])} of each channel",
    ]


def _numbers(values: list[float] | None) -> str:
    """Format the values of three channels; those that only model.pt knows may not be there."""
    return "as in model.pt" if values is None else ", ".join(f"{value:.6g}" for value in values)


def method_lines(method: dict, quote: Quote) -> list[str]:
    """Return how a network was distilled, a line for each fact."""
    temperatures = ", ".join(f"{value:g}" for value in method["temperatures"]) or NOT_KNOWN
    lines = [
        f"Mode: {quote(method['mode'])}, {method['teacher']} (arXiv {method['source']})",
        f"alpha (weight of the teacher): {method['alpha']:g}; temperature T: {temperatures}",
    ]
    for phase in method["phases"]:
        kinds = []
        for name, kind in phase["knowledge"].items():
            options = "".join(f", {key} {value}" for key, value in kind["options"].items())
            kinds.append(
                f"{quote(name)}: {kind['what']} ({kind['location']}; {kind['transfer']}; weight"
                f" {kind['weight']:g}{options})"
            )
        lines.append(
            f"Phase {quote(phase['name'])}: {phase['images']},"
            f" {'with' if phase['labels'] else 'without'} labels; knowledge"
            f" {'; '.join(kinds) or 'none'}"
        )
    for one in method["teachers"]:
        differs = "".join(f"; {quote(text)}" for text in one["differences"])
        lines.append(
            f"Teacher: {quote(one['name'])} ({quote(one['architecture'])}, {one['parameters']:,}"
            f" parameters, weight {one['weight']:g}), validation accuracy"
            f" {one['valid_accuracy']:.4f}, test accuracy {one['test_accuracy']:.4f}, weights"
            f" {quote(one['hash'])}{differs}"
        )
    if method["agreement"]:
        own = method["agreement"]
        lines.append(
            f"Agreement with the teacher on test images: {own['same_prediction']:.4f};"
            f" {own['newly_wrong']} images are wrong only here, {own['newly_right']} only there"
        )
    return lines


def results_table(card: dict) -> Table:
    """Return header and rows of the defined metrics, beside the teacher and the network alone."""
    sides = _sides(card)
    results, gaps = card["results"], card["differences"]
    header = [
        "metric, test split",
        "this network",
        *(f"{words}: {name}" for _, words, name in sides),
    ]
    shown = [key for key, *_ in sides if gaps[key]["metrics"]]
    header += [f"minus {_SIDES[key]}" for key in shown]
    own = results["network"]["metrics"]
    rows = []
    for name in dict.fromkeys([*card["first_metrics"], *own]):
        if own[name]["value"] is not None:
            cells = [value_text(own[name]), *(_of_side(results[key], name) for key, *_ in sides)]
            cells += [value_text(gaps[key]["metrics"].get(name), "+") for key in shown]
            rows.append([words_of(name), *cells])
    if not own:
        accuracies = [
            results[key]["test_accuracy"] for key in ("network", *(key for key, *_ in sides))
        ]
        cells = [NOT_KNOWN if one is None else f"{one:.4f}" for one in accuracies]
        rows.append(["accuracy", *cells, *[NOT_KNOWN] * len(shown)])
    return header, rows


def subgroups_table(card: dict) -> Table:
    """Return header and rows of the first metrics in each group of images."""
    header = ["group", "images", "patients", *map(words_of, card["first_metrics"]), "note"]
    rows = []
    for column, groups in card["subgroups"].items():
        for group, own in groups.items():
            cells = [value_text(own["metrics"].get(name)) for name in card["first_metrics"]]
            counts = [str(own["images"]), str(own["patients"])]
            rows.append([f"{column}: {group}", *counts, *cells, own["note"] or ""])
    return header, rows


def _sides(card: dict) -> list[tuple[str, str, str]]:
    """Return (key, words, name) of the networks that stand beside the one of the card."""
    found = []
    for key, words in _SIDES.items():
        own = card["results"][key]
        if own["test_accuracy"] is not None:
            found.append((key, words, own["name"]))
    return found


def _of_side(result: dict, name: str) -> str:
    if name == "accuracy" and not result["metrics"]:
        return f"{result['test_accuracy']:.4f}"
    return value_text(result["metrics"].get(name))


def metric_notes(card: dict, quote: Quote) -> list[str]:
    """Return what the table of results leaves open: undefined metrics and missing networks."""
    metrics = card["results"]["network"]["metrics"]
    notes = _undefined(metrics)
    for key, words in _SIDES.items():
        reason = card["results"][key]["reason"] or card["differences"][key]["reason"]
        if reason:
            notes.append(f"Not compared with the {words}: {reason}.")
    if not metrics:
        notes.append("An earlier version wrote the report, without further metrics.")
    point = card["model"]["operating_point"]
    if point is not None:
        threshold = NOT_KNOWN if point["threshold"] is None else f"{point['threshold']:.4f}"
        notes.append(
            f"Positive: {quote(card['model']['positive'])}. Operating point ({point['rule']}):"
            f" probability of at least {threshold}."
        )
    terms = []
    for name, one in metrics.items():
        if one["value"] is not None:
            terms.append(f"{words_of(name)}: {MEASURES[name].what}")
    if terms:
        notes.append(f"Definitions: {'; '.join(terms)}.")
    return notes


def _undefined(metrics: dict) -> list[str]:
    """Return a sentence for each reason why metrics have no value, or no interval."""
    names = {}
    for name, one in metrics.items():
        if one["reason"]:
            what = "Undefined" if one["value"] is None else "Without an interval"
            names.setdefault((what, one["reason"]), []).append(words_of(name))
    return [f"{what} ({reason}): {', '.join(own)}." for (what, reason), own in names.items()]


def calibration_table(card: dict) -> Table:
    """Return header and rows: errors of calibration before and after temperature scaling."""
    sides = [("network", "this network"), *((key, words) for key, words, _ in _sides(card))]
    header = ["test split"]
    columns = []
    for key, words in sides:
        own = card["results"][key]["calibration"]
        if own is not None:
            header += [f"{words}, T = 1", f"{words}, {_scaled_words(own)}"]
            columns += [own["before"], own["after"] or {}]
    rows = []
    for key, words in _CALIBRATION:
        cells = [column.get(key) for column in columns]
        if any(cell is not None for cell in cells):
            rows.append([words, *(NOT_KNOWN if one is None else f"{one:.4f}" for one in cells)])
    return header, rows


def _scaled_words(own: dict) -> str:
    return "not scaled" if own["temperature"] is None else f"T = {own['temperature']:.3f}"


def calibration_notes(card: dict) -> list[str]:
    """Return sentences on the calibration."""
    own = card["results"]["network"]["calibration"]
    notes = ["The temperature was fitted on the validation split."]
    if own["temperature"] is None:
        notes = [f"No temperature was fitted: {own['reason']}."]
    if own["ece_if_calibrated"] is not None:
        notes.append(
            f"A perfectly calibrated network would have an ECE of {own['ece_if_calibrated']:.4f} on"
            " as few images, because the ECE sums absolute values."
        )
    return notes


def files_table(files: list[dict]) -> Table:
    """Return header and rows of the exported files; a column that no file has is left out."""
    columns = [one for one in _FILE_COLUMNS if any(file.get(one[0]) for file in files)]
    rows = []
    for file in files:
        cells = []
        for key, _ in columns:
            is_latency = key.startswith("latency")
            cells.append(_latency(file.get(key)) if is_latency else _file_cell(file.get(key)))
        rows.append(cells)
    return [words for _, words in columns], rows


def _latency(by_threads: dict | None) -> str:
    """Format {threads: its median, low and high quartile in seconds} in milliseconds."""
    texts = []
    for threads, one in (by_threads or {}).items():
        median, low, high = (f"{1e3 * one[key]:.3g}" for key in ("median", "low", "high"))
        words = "thread" if str(threads) == "1" else "threads"
        texts.append(f"{median} [{low}, {high}] ms, {threads} {words}")
    return "; ".join(texts) or NOT_KNOWN


def _file_cell(value) -> str:
    if value is None:
        return NOT_KNOWN
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_file_cell(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_file_cell, value))
    return f"{value:.6g}" if isinstance(value, float) else printable(value)


def repeat_texts(card: dict, quote: Quote) -> tuple[str, str]:
    """Return what stands above and below the command that repeats the run."""
    commit = card["repeat"]["commit"]
    where = quote(commit) if commit else "a commit that was not recorded"
    return (
        f"The program was at {where}. This command repeats the run:",
        f"{quote('settings.json')} is in the folder of the run. Where the data have moved, add"
        f" {quote('--data-dir')}. On another machine or number of threads, the last digits differ.",
    )


def licence_lines(licences: dict, quote: Quote) -> list[str]:
    """Return the licences of weights and data, and a sentence on each that is not known."""
    flags = {"weights": "--weights-license", "data": "--data-license"}
    lines = []
    for key, flag in flags.items():
        line = f"{key.capitalize()}: {quote(licences[key])}"
        if licences[key] == UNKNOWN:
            line += f" (not given: {flag} of evaluate.py states it; ask before use)"
        lines.append(line)
    return lines


def setting_text(value) -> str:
    """Format the value of a setting."""
    return "yes" if value is True else json.dumps(value, ensure_ascii=False).strip('"')


def settings_rows(card: dict, quote: Quote) -> list[list[str]]:
    """Return name and value of the settings of a run that are set to something."""
    rows = []
    for key, value in card["training"]["settings"].items():
        if value is not None and value is not False and value not in ("", []):  # 0 is shown
            rows.append([key, quote(setting_text(value))])
    return rows
