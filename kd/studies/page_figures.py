"""The figures of the page of a study, as data URIs with texts for those who cannot see them."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from kd.config.layout import RunPaths
from kd.reports.text import difference_text
from kd.studies.model_card_tables import value_text
from kd.studies.page_parts import Details, Figure, Section, shown
from kd.studies.runs import Run
from kd.system.errors import counted

MOST = 40  # figures of the page, without images of patients
MOST_BYTES = 6_000_000  # of all of them, before they are written as text
MOST_IMAGES = 12  # contact sheets of patients
FEW = 4  # networks whose figures are shown without a click
LARGEST = 2_000_000  # bytes of a figure: a larger file is no figure of this program
LARGEST_SHEET = 30_000_000  # of a contact sheet, before it is reduced
SHEET_WIDTH = 1600  # pixels
MOST_ITEMS = 8  # values that an alternative text lists
NAMES = ("confusion", "reliability", "roc", "precision_recall", "calibration", "decision_curve")
_CAPTIONS = {
    "confusion": "Confusion matrix",
    "reliability": "Reliability: confidence and accuracy",
    "roc": "ROC curve",
    "precision_recall": "Precision and recall",
    "calibration": "Calibration of the positive class",
    "decision_curve": "Decision curve: net benefit",
}
# MURA's own tree of folders, whatever reader has read it.
_MURA_PATH = re.compile(r"XR_[A-Z]+[/\\]patient\d+[/\\]study\d+")


class Figures:
    """Counts the figures of a page, so that a large study stays small enough to be sent."""

    def __init__(self):
        self._count, self._bytes, self._omitted, self._broken = 0, 0, 0, 0

    def take(self, wanted: list[tuple[Path, str, str]]) -> list[Figure]:
        """Return the figures of (file, alternative text, caption) that exist and still fit."""
        found = []
        for file, alt, caption in wanted:
            if not file.is_file():
                continue
            if self._count >= MOST or self._bytes + file.stat().st_size > MOST_BYTES:
                self._omitted += 1
                continue
            figure = _embedded(file, alt, caption)
            if figure is None:
                self._broken += 1
                continue
            self._count += 1
            self._bytes += file.stat().st_size
            found.append(figure)
        return found

    def left_out(self) -> list[str]:
        """Return sentences on the figures that the page does not show; empty if it shows all."""
        sentences = []
        if self._omitted:
            more = counted(self._omitted, "more figure is", "more figures are")
            sentences.append(
                f"{self._count} figures are shown; {more} in the folders of the runs and not on"
                " this page, to keep it small."
            )
        if self._broken:
            sentences.append(
                f"{counted(self._broken, 'figure', 'figures')} could not be read as PNG."
            )
        return sentences


def _embedded(file: Path, alt: str, caption: str, widest: int | None = None) -> Figure | None:
    """Return a figure with the pixels of a PNG and nothing else of it; None if it is no PNG.

    widest  pixels to which a wider image is reduced
    """
    try:
        if file.stat().st_size > (LARGEST if widest is None else LARGEST_SHEET):
            return None
        with Image.open(file, formats=("PNG",)) as image:
            pixels = image.convert("L" if image.mode in ("L", "I;16") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if widest is not None and pixels.width > widest:
        pixels.thumbnail((widest, widest * 4))
    written = io.BytesIO()
    pixels.info.clear()
    pixels.save(written, format="png", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")
    return Figure(source, pixels.width, pixels.height, shown(alt), shown(caption))


def heat_map_file(root: Path, table: dict, number: int | None) -> Path:
    """Return the file of a table's heat map: tables[-NUMBER]-MODE[-TAG].png.

    number  of the protocol, from 0; None if there is one
    """
    words = ["tables", "" if number is None else str(number), table["mode"], table["tag"]]
    return root / f"{'-'.join(word for word in words if word)}.png"


def heat_map(root: Path, table: dict, number: int | None) -> tuple[Path, str, str]:
    """Return (file, alternative text, caption) of the heat map of a table."""
    texts = []
    for cell in table["cells"]:
        gap = cell["minus_alone"]
        words = f"{difference_text(gap)}, {gap['says']}" if gap else "not known"
        texts.append(f"{cell['student']} <- {cell['teacher']}: {words}")
    more = f"; and {len(texts) - MOST_ITEMS} more, see the table" if len(texts) > MOST_ITEMS else ""
    alt = (
        "Heat map: test accuracy of each student minus that of the same network trained alone."
        f" {'; '.join(texts[:MOST_ITEMS])}{more}."
    )
    caption = f"{table['title']}: difference from the baseline, as in the table"
    return heat_map_file(root, table, number), alt, caption


def run_figures(runs: list[Run], figures: Figures) -> Section:
    """Return the section of the runs' own figures, of the first seed of each cell."""
    chosen = first_seeds(runs)
    taken = {run.folder: [] for run in chosen}
    for name in NAMES:  # each run has its confusion matrix before one has all of its figures
        for run in chosen:
            file = RunPaths(run.folder).figure(name)
            caption = f"{_CAPTIONS[name]}: {name_of(run)}"
            taken[run.folder] += figures.take([(file, alt_text(run, name), caption)])
    details = []
    for run in chosen:
        if taken[run.folder]:
            own = taken[run.folder]
            details.append(Details(name_of(run), figures=own, opened=len(chosen) <= FEW))
    several = "The lowest seed of each network stands for the others." if chosen != runs else ""
    lines = [several] if several else []
    if not details:
        lines = ["No figures: the runs have none, or they are left out."]
    return Section("Figures of the runs, test split", lines=lines, details=details)


def first_seeds(runs: list[Run]) -> list[Run]:
    """Return the run with the lowest seed of each cell: students first, then networks alone."""
    first = {}
    for run in sorted(runs, key=lambda run: (not run.teacher, *map(str, run.cell[:4]), run.seed)):
        first.setdefault(run.cell[:4], run)
    return list(first.values())


def name_of(run: Run) -> str:
    """Return what a run is, in a line: `resnet18 <- resnet34, normal, tag x, seed 0`."""
    words = [f"{run.student} <- {run.teacher}" if run.teacher else run.student, run.role]
    if run.tag:
        words.append(f"tag {run.tag}")
    return shown(", ".join([*words, f"seed {run.seed}"]))


def alt_text(run: Run, name: str) -> str:
    """Return what a figure of a run shows, in numbers."""
    evidence = run.report["evidence"]
    metrics = evidence["metrics"]
    texts = {
        "confusion": _confusion(run),
        "reliability": _reliability(evidence["calibration"]),
        "roc": f"area {value_text(metrics.get('auroc') or metrics.get('referable_auc'))}",
        "precision_recall": f"average precision {value_text(metrics.get('auprc'))}",
        "calibration": f"Brier score {value_text(metrics.get('brier'))}, ECE"
        f" {value_text(metrics.get('ece'))}",
        "decision_curve": "net benefit by threshold, against treating all or none",
    }
    of = ""
    if evidence["positive"] is not None and name not in ("confusion", "reliability"):
        of = f" of {evidence['positive']}"
    return f"{_CAPTIONS[name]}{of}, {name_of(run)}, test split: {texts[name]}."


def _confusion(run: Run) -> str:
    """Return how many images of each class are right, and the most common confusion."""
    matrix, classes = run.report["confusion_matrix"], run.report["data"]["classes"]
    texts = []
    worst = (0, "")
    for place, row in enumerate(matrix):
        texts.append(f"{classes[place]} {row[place]} of {sum(row)} right")
        for other, count in enumerate(row):
            if other != place and count > worst[0]:
                worst = (count, f"{count} of {classes[place]} taken for {classes[other]}")
    more = f", and {len(texts) - MOST_ITEMS} more classes" if len(texts) > MOST_ITEMS else ""
    most = f"; most often confused: {worst[1]}" if worst[1] else ""
    return f"{', '.join(texts[:MOST_ITEMS])}{more}{most}"


def _reliability(calibration: dict) -> str:
    before = f"ECE {calibration['before']['ece']:.4f} without scaling"
    if calibration["after"] is None:
        return f"{before}; no temperature was fitted"
    return (
        f"{before}, {calibration['after']['ece']:.4f} at the temperature"
        f" {calibration['temperature']:.3f}"
    )


def is_mura(run: Run) -> bool:
    """Return whether the images of a run are those of MURA, whatever reader has read them."""
    if run.report["data"]["reader"] == "mura":
        return True
    return any(_MURA_PATH.search(path) for path in run.test.paths[:100].tolist())


def images_of_patients(runs: list[Run], asked: bool, figures: Figures) -> list[Section]:
    """Return the section of the contact sheets in RUN/look, if they were asked for.

    Images of MURA are never shown, because its licence forbids to pass them on.
    """
    if not asked:
        return []
    title = "Images of patients"
    if is_mura(runs[0]):
        line = "Left out: images of MURA may not be passed on, not even as thumbnails."
        return [Section(title, lines=[line])]
    found, count = [], 0
    for run in runs:
        for file in sorted((run.folder / "look").glob("look-*.png")):
            count += 1
            if len(found) < MOST_IMAGES:
                what = file.stem.removeprefix("look-")
                caption = f"Contact sheet of test images of patients, {what}: {name_of(run)}"
                alt = f"{caption}. Rows of images of this class and where networks look in them."
                figure = _embedded(file, alt, caption, SHEET_WIDTH)
                found += [figure] if figure else []
    lines = ["These are images of patients: pass this page on only if you may pass them on."]
    if not count:
        lines = ["None: no run has contact sheets (look-*.png) in its folder look/."]
    if count > len(found):
        lines.append(f"{len(found)} of {count} contact sheets are shown.")
    return [Section(title, warnings=lines, figures=found)]
