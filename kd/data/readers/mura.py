"""Read MURA v1.1 as it is downloaded: a tree of studies, with or without its CSV files."""

import os
import re
from pathlib import Path

from kd.data.files.find import count_extensions, walk
from kd.data.index import Index, Sample
from kd.system.errors import Problem, counted, first_names
from kd.system.messages import first_line

PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
BODY_PART = "body part"  # name of a further column
THESIS_SIZES = (2201, 250, 245)
# The official test set is not public, so the official validation set is the test split here.
FOLDERS = {"train": "train", "valid": "test"}
_STUDY = re.compile(
    r"(train|valid)/XR_([A-Z]+)/(patient[^/]+)/(study[^/]+_(positive|negative))/([^/]+)"
)
DEMO = (
    "python distill.py --teacher seresnet50 --student vgg11 --mode normal --config"
    " configs/demo.toml"
)


def read(data_dir: str | None, label: str) -> Index:
    """Read the index of MURA below `data_dir`.

    `label` is `part` (seven body parts) or `abnormal` (negative, positive). Patients with the same
    name are one patient across all body parts and splits. Raises Problem if MURA is not found.
    """
    root = find_root(data_dir)
    others = []
    if (root / "train_image_paths.csv").is_file():
        paths, skipped = _from_csv(root)
    else:
        paths, others, skipped = _from_tree(root)
    samples = _samples(root, paths, label)
    if not samples:
        raise Problem(
            f"--data-dir '{data_dir}' is not valid: its folders train and valid contain no PNG"
            " files. Unpack MURA-v1.1.zip again."
        )
    return Index(
        "mura" if label == "part" else "mura_abnormal",
        _classes(label),
        tuple(samples),
        space="mura",
        root=root,
        channels=1,
        sizes=THESIS_SIZES if label == "part" else None,
        skipped=skipped,
        others=count_extensions(others),
        extra={} if label == "part" else {BODY_PART: _body_parts(samples)},
    )


def _body_parts(samples: list[Sample]) -> tuple[str, ...]:
    """Return the body part of each image, by which MURA's leaderboard reports kappa."""
    return tuple(_STUDY.fullmatch(sample.path)[2].lower() for sample in samples)


def _classes(label: str) -> tuple[str, ...]:
    return PARTS if label == "part" else ("negative", "positive")


def _samples(root: Path, paths: list[str], label: str) -> list[Sample]:
    """Return the samples, sorted by path. Raises Problem for paths that are not as in MURA."""
    classes = _classes(label)
    samples = []
    strange = []
    for path in sorted(paths):
        match = _STUDY.fullmatch(path)
        if match is None or match[2].lower() not in PARTS:
            strange.append(path)
            continue
        folder, body_part, patient, study, finding, _ = match.groups()
        name = body_part.lower() if label == "part" else finding
        study = f"{patient}/{body_part}/{study}"
        samples.append(Sample(path, classes.index(name), patient, study, FOLDERS[folder]))
    if strange:
        raise Problem(
            f"Images in {root} are not at"
            " train|valid/XR_BODYPART/patientN/studyN_positive|negative/imageN.png:"
            f" {first_names(strange)}. Move them out of the folder."
        )
    return samples


def find_root(data_dir: str | None) -> Path:
    """Return the folder that contains train/ and valid/.

    Archives nest it up to twice in a folder with the same name. Raises Problem if it is not found.
    """
    if data_dir is None:
        raise Problem(
            "--data-dir is not set: --dataset mura needs the folder of MURA-v1.1. Use --data-dir"
            f" DIR, or run the demo, which needs no data: '{DEMO}'."
        )
    start = Path(data_dir)
    for root in (start, start / "MURA-v1.1", start / "MURA-v1.1" / "MURA-v1.1"):
        if os.path.isdir(root / "train") and any((root / "train").glob("XR_*")):
            return root
    why = "no such folder, or it is not accessible"
    if os.path.isdir(start):
        why = "it contains no train/XR_* folders"
    raise Problem(
        f"--data-dir '{data_dir}' is not valid: {why}. Use the folder of MURA-v1.1, add --dataset"
        f" folder for your own images, or run the demo, which needs no data: '{DEMO}'."
    )


def _from_tree(root: Path) -> tuple[list[str], list[str], int]:
    """Return (paths of all PNG files relative to root, other files, number of skipped files).

    macOS leaves hidden `._*.png` files that are not images.
    """
    paths = []
    others = []
    skipped = 0
    for part in FOLDERS:
        for folder in walk(root / part):
            skipped += folder.skipped
            for name in folder.files:
                chosen = paths if name.lower().endswith(".png") else others
                chosen.append("/".join((part, *folder.inside, name)))
    return paths, others, skipped


def _from_csv(root: Path) -> tuple[list[str], int]:
    """Return (paths, number of hidden files), from the official lists of paths.

    Paths in these lists begin with `MURA-v1.1/`, whatever the name of the folder.
    """
    paths = []
    missing = []
    strange = []
    skipped = 0
    for folder in FOLDERS:
        file = root / f"{folder}_image_paths.csv"
        for number, line in enumerate(_lines(file), 1):
            line = line.strip()
            path = line.partition("/")[2]
            if not line:
                continue
            if _STUDY.fullmatch(path) is None:
                strange.append(f"row {number} '{line[:200]}' in {file.name}")
                continue
            if path.rpartition("/")[2].startswith("."):
                skipped += 1
                continue
            if not (root / path).is_file():
                missing.append(f"row {number} {path}")
            paths.append(path)
    _check_lists(root, paths, strange, missing)
    return paths, skipped


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise Problem(
            f"'{file}' cannot be read: no such file, although the other list exists. Restore it,"
            " or remove both lists."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(
            f"'{file}' cannot be read ({first_line(error)}). Unpack MURA-v1.1.zip again."
        ) from None


def _check_lists(root: Path, paths: list[str], strange: list[str], missing: list[str]) -> None:
    """Raise Problem for rows of the lists that cannot be used."""
    if strange:
        raise Problem(
            f"CSV files of {root} have rows that are not MURA-v1.1/train|valid/XR_.../imageN.png:"
            f" {first_names(strange)}. Fix these rows."
        )
    if missing:
        raise Problem(
            f"Images listed in the CSV files of {root} are missing: {first_names(missing)}. Unpack"
            " MURA-v1.1.zip again, or remove both lists to read the folders as they are."
        )
    if len(set(paths)) != len(paths):
        rows = counted(len(paths) - len(set(paths)), "duplicate row", "duplicate rows")
        raise Problem(f"CSV files of {root} contain {rows}. Unpack MURA-v1.1.zip again.")
