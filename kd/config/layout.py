"""The layout of a run's folder: OUT/DATA/MODE[-TAG]/PAIR/seedN and the files in it.

Only this module depends on the number of levels and on the names of the files.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kd.config.settings import Data

# Characters of a name that is made from a text, so that there is room for what is added to it.
LONGEST = 200


@dataclass(frozen=True)
class RunPaths:
    """The files of a run.

    path          its folder
    state_folder  the folder with its saved state, if that is another one: students that are trained
                  at once have one saved state, in the folder of the first of them
    """

    path: Path
    state_folder: Path | None = None

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def report(self) -> Path:
        """The report, which is written last: a run that has it is finished."""
        return self.path / "report.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def model(self) -> Path:
        return self.path / "model.pt"

    @property
    def resume(self) -> Path:
        """The newest saved state of a run that is not finished."""
        return (self.state_folder or self.path) / "resume.pt"

    @property
    def previous(self) -> Path:
        """The saved state before the newest."""
        return (self.state_folder or self.path) / "resume.previous.pt"

    @property
    def ended(self) -> Path:
        """The record of how a run ended without a report."""
        return self.path / "ended.json"

    @property
    def evaluation(self) -> Path:
        """The output of `evaluate.py RUN`."""
        return self.path / "evaluation.json"

    @property
    def unreadable(self) -> Path:
        """The images that `evaluate.py RUN --dataset` passed over, beside its predictions."""
        return self.path / "unreadable.csv"

    @property
    def card(self) -> Path:
        """The output of `evaluate.py --card RUN`, as values."""
        return self.path / "card.json"

    @property
    def card_text(self) -> Path:
        """The output of `evaluate.py --card RUN`, as Markdown."""
        return self.path / "card.md"

    @property
    def export(self) -> Path:
        """The folder that `evaluate.py --export RUN` writes."""
        return self.path / "export"

    @property
    def pair(self) -> str:
        """PAIR of the folder's path: `TEACHER-STUDENT`, or a network trained without a teacher."""
        return self.path.parent.name

    def figure(self, name: str) -> Path:
        """A figure of the run, for example `confusion`, `reliability` or `roc`."""
        return self.path / f"{name}.png"

    @property
    def finished(self) -> bool:
        return self.report.is_file()

    @property
    def begun(self) -> bool:
        """Whether there is a saved state to continue from."""
        return self.resume.is_file() or self.previous.is_file()

    def forget(self) -> None:
        """Remove the files that only an unfinished run needs."""
        for file in (self.resume, self.previous, self.ended):
            file.unlink(missing_ok=True)


def run_path(out: str, data: str, mode: str, tag: str, pair: str, seed: int) -> Path:
    """Return OUT/DATA/MODE[-TAG]/PAIR/seedN.

    mode  `teacher` for a network trained on labels only
    pair  TEACHER-STUDENT or a network; what a folder's name cannot contain becomes `_`, so that
          `hf-hub:timm/resnet18.a1_in1k` is `hf-hub_timm_resnet18.a1_in1k`
    """
    tagged = f"{mode}-{tag}" if tag else mode
    pair = re.sub(r"[^A-Za-z0-9._+-]+", "_", pair)
    return Path(out) / data / tagged / pair / f"seed{seed}"


def data_name(data: Data) -> str:
    """Return the name of a data set, its split, image size and labels, without reading the data.

    Examples: `mura-patient-224`, and with the labels of 5 % of the patients, selected by seed 1,
    `mura-patient-224-labels0.05.1`.
    """
    name = data.dataset
    if data.dataset == "mura" and data.label != "part":
        name = "mura_abnormal"
    elif data.dataset == "folder":
        name = slug(folder_of(data).resolve().name)
    seed = f"{data.split_seed}" if data.split_seed else ""
    labels = ""
    if data.labeled_fraction < 1:
        labels = f"-labels{data.labeled_fraction:g}"
        labels += f".{data.labeled_seed}" if data.labeled_seed else ""
    return f"{name}-{data.split}{seed}-{data.image_size}{labels}"


def folder_of(data: Data) -> Path:
    """Return the folder of --dataset folder: --data-dir, otherwise the folder of --table."""
    if data.data_dir is None and data.table is not None:
        return Path(data.table).parent
    return Path(data.data_dir or ".")


def slug(text: str) -> str:
    """Return `text` with everything replaced that a folder name cannot contain.

    The end of a very long text is replaced by a hash.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-") or "data"
    if len(name) <= LONGEST:
        return name
    return (
        f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"
    )


def is_folder_name(text: str) -> bool:
    """Return whether `text` can be part of a folder name unchanged."""
    return slug(text) == text


def finished_below(root: Path) -> list[Path]:
    """Return the folders of all finished runs below `root`, sorted by the path of the report."""
    reports = sorted(root.rglob(RunPaths(root).report.name))
    return [report.parent for report in reports]


def unfinished_below(root: Path) -> list[Path]:
    """Return the folders below `root` that have settings but no report, sorted."""
    settings = sorted(root.rglob(RunPaths(root).settings.name))
    return [file.parent for file in settings if not RunPaths(file.parent).finished]


def out_of(run: Path) -> Path:
    """Return OUT of a run's folder, relative to the working folder if `run` is relative."""
    return _above(run, 3)


def data_of(run: Path) -> Path:
    """Return OUT/DATA of a run's folder, relative to the working folder if `run` is relative."""
    return _above(run, 2)


def alone_path(run: Path, tag: str, name: str, seed: int) -> Path:
    """Return the folder of the network `name` trained on labels only, next to a run on its data."""
    data = data_of(run)
    return run_path(str(data.parent), data.name, "teacher", tag, name, seed)


def _above(run: Path, levels: int) -> Path:
    """Return the folder `levels` above the parent of `run`, or the topmost if there are fewer."""
    if len(run.parents) > levels and ".." not in run.parts:
        return run.parents[levels]
    above = run.resolve().parents
    return Path(os.path.relpath(above[min(levels, len(above) - 1)]))
