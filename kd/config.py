"""Settings: dataclass defaults, then a TOML or JSON file, then flags. Every field is declared once, here."""

import argparse
import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path

from kd.errors import Problem

MODES = ("normal", "reverse", "defective")


def option(default, help, *, choices=None, above=None, least=None, most=None, identity=True, **argument):
    """A field with its flag's help and the values it allows.

    `identity=False`: the value does not change what is computed, so another one may finish a run that has begun.
    `argument` goes to `argparse` as it is (metavar, nargs).
    """
    limits = {"choices": choices, "above": above, "least": least, "most": most}
    metadata = {"help": help, "limits": limits, "identity": identity, "argument": argument}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Teacher:
    """the teacher"""

    model: str = option("seresnet50", "network to train: a name of the thesis or any of timm's", metavar="NAME")
    stop_at_val_accuracy: float | None = option(
        None, "stop as soon as validation accuracy passes this: a defective teacher (the thesis: 0.5)", above=0, most=1)
    look_every: int = option(8, "steps between two looks at a fixed part of the validation images, with "
                             "--stop-at-val-accuracy", least=1)


@dataclass(frozen=True)
class Distillation:
    """the pair and its transfer"""

    teacher: str = option("seresnet50", "network that teaches; trained first where no run of it is found", metavar="NAME")
    student: str = option("resnet18", "network that learns", metavar="NAME")
    mode: str = option("normal", "which teacher meets which student", choices=MODES)
    temperature: float = option(4.0, "T: softens both networks' logits", above=0)
    alpha: float = option(0.5, "weight of the KD term; the label's is 1 - alpha", least=0, most=1)
    teacher_checkpoint: str | None = option(
        None, "weights of --teacher that you have: a model.pt of ours or a timm state_dict (.pt, .safetensors)", metavar="FILE")


@dataclass(frozen=True)
class Data:
    """pictures and parts"""

    dataset: str = option("mura", "how the data lie on disk", choices=("mura", "folder", "synthetic"))
    data_dir: str | None = option(None, "folder that holds them", metavar="DIR")
    label: str = option("part", "MURA's label: the body part (the thesis) or abnormal/normal", choices=("part", "abnormal"))
    split: str = option("patient", "patient: no patient in two parts; thesis: by image, leaks; given: as the data say",
                        choices=("patient", "thesis", "given"))
    split_seed: int = option(0, "seed of the parts", least=0)
    train_per_class: int | None = option(None, "train images a class; small classes repeat (MURA: 2201; else all)", least=1)
    valid_per_class: int | None = option(None, "validation images a class (MURA: 250; else 15 %%)", least=1)
    test_per_class: int | None = option(None, "test images a class (MURA: 245; else 15 %% or what is given)", least=1)
    synthetic_images: int = option(2100, "pictures of the synthetic set", least=1)
    synthetic_seed: int = option(0, "seed of the synthetic set", least=0)
    image_size: int = option(224, "side of the square that networks see, in pixels", least=16, most=2048)
    resize: str = option("squash", "squash to the square (the thesis) or pad to it", choices=("squash", "pad"))
    channels: int = option(0, "store 1 (grey) or 3 (colour) channels; 0: look at the pictures", choices=(0, 1, 3))
    cache_dir: str = option("cache", "decoded pictures; may be deleted at any time", metavar="DIR", identity=False)


@dataclass(frozen=True)
class Network:
    """networks"""

    pretrained: bool = option(True, "start from ImageNet weights")
    weights: str | None = option(None, "start the network that is trained from this file instead", metavar="FILE")
    drop_rate: float | None = option(None, "dropout before the classifier (as published: vgg11 0.5, SE nets 0.2)",
                                     least=0, most=0.99)


@dataclass(frozen=True)
class Training:
    """training"""

    epochs: int = option(20, "passes over the train part", least=1)
    batch_size: int = option(16, "images a step", least=1)
    lr: float = option(1e-4, "Adam's learning rate", above=0)
    schedule: str = option("constant", "learning rate over the run", choices=("constant", "cosine"))
    weight_decay: float = option(0.0, "Adam's L2 penalty", least=0)
    clip_norm: float | None = option(None, "clip the gradient's norm to this", above=0)
    augment: bool = option(True, "train on flipped, turned, scaled and shifted views")
    seed: int = option(0, "seed of weights, order and views", least=0, most=2**31)
    amp: str = option("auto", "precision of training; evaluation is always float32", choices=("auto", "bf16", "fp16", "off"))
    max_steps: int | None = option(None, "end training after this many steps", least=1)
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes the fastest", metavar="DEVICE", identity=False)
    save_every_minutes: float = option(5.0, "save for resuming this often", least=0, identity=False)


@dataclass(frozen=True)
class Output:
    """where results go"""

    out: str = option("runs", "folder of all runs", metavar="DIR", identity=False)
    tag: str = option("", "name a variant: its runs get folders of their own", metavar="NAME")


@dataclass(frozen=True)
class TeacherSettings:
    """Train a network on labels alone: a teacher, a student's baseline, or (stopped early) a defective teacher."""

    teacher: Teacher = field(default_factory=Teacher)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True)
class DistillSettings:
    """Train a student on the labels and on what a teacher says of the same images."""

    distillation: Distillation = field(default_factory=Distillation)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True)
class Evaluation:
    """what to evaluate"""

    runs: list[str] = option([], "folders of finished runs", metavar="RUN", nargs="+")
    dataset: str | None = option(None, "other pictures than the run's own test part", choices=("folder",))
    data_dir: str | None = option(None, "the folder of those pictures: class folders, images.csv, or unlabelled", metavar="DIR")
    batch_size: int = option(64, "images at a time", least=1)
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes the fastest", metavar="DEVICE")
    cache_dir: str = option("cache", "decoded pictures; may be deleted at any time", metavar="DIR")


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluate finished runs: every test image once, in float32."""

    evaluation: Evaluation = field(default_factory=Evaluation)


KINDS = (TeacherSettings, DistillSettings, EvaluateSettings)


def parse(kind, argv=None):
    """Settings of `kind` from the command line; None after `--dry-run`, which prints them as TOML.

    Raises Problem (exit code 2) for an unknown flag or key, a value of the wrong type and one out of range.
    """
    flags = vars(_parser(kind).parse_args(argv))
    file, dry_run = flags.pop("config"), flags.pop("dry_run")
    values = {}
    if file is not None:
        values = {key: (value, f"{file}") for key, value in _read_file(kind, Path(file)).items()}
    values |= {key: (value, "--" + key.replace("_", "-")) for key, value in flags.items()}
    settings = build(kind, values)
    if dry_run:
        print("".join(f"{key} = {_toml(value)}\n" for key, value in flat(settings).items() if value is not None), end="")
        return None
    return settings


def build(kind, values: dict):
    """Settings of `kind` from {key: (value, where it was given)}; keys that are left out keep their defaults."""
    sections = {}
    for section in fields(kind):
        given = {}
        for entry in fields(section.type):
            if entry.name in values:
                given[entry.name] = _checked(entry, section.type, *values[entry.name])
        sections[section.name] = section.type(**given)
    return kind(**sections)


def flat(settings, identity_only: bool = False) -> dict:
    """All settings as one dictionary; with `identity_only` those alone that change what is computed."""
    return {entry.name: getattr(getattr(settings, section.name), entry.name)
            for section in fields(settings) for entry in fields(section.type)
            if entry.metadata["identity"] or not identity_only}


def replace(settings, **changes):
    """A copy with some keys changed, whatever section they stand in."""
    sections = {}
    for section in fields(settings):
        here = {entry.name for entry in fields(section.type)} & changes.keys()
        sections[section.name] = dataclasses.replace(getattr(settings, section.name), **{k: changes[k] for k in here})
    return type(settings)(**sections)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        known = [flag for action in self._actions for flag in action.option_strings]
        word = message.rpartition("unrecognized arguments: ")[2].split("=")[0].split(" ")[0]
        if "unrecognized arguments" in message:
            raise Problem(f"unknown flag '{word}' in the command line: {self.prog} has none of that name; "
                          f"{_nearest(word, known)}see --help")
        raise Problem(f"command line of {self.prog}: {message}; see --help")


def _parser(kind) -> argparse.ArgumentParser:
    parser = _Parser(description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for section in fields(kind):
        group = parser.add_argument_group(section.type.__doc__)
        for entry in fields(section.type):
            _add_flag(group, entry, section.type)
    group = parser.add_argument_group("settings from a file")
    group.add_argument("--config", default=None, metavar="FILE", help="TOML, or the settings.json of a run; flags win over it")
    group.add_argument("--dry-run", action="store_true", default=False, help="print the settings as TOML and stop")
    return parser


def _add_flag(group, entry, section):
    kind, _ = _type(entry, section)
    argument = dict(entry.metadata["argument"])
    default = entry.default if entry.default is not dataclasses.MISSING else None
    help = entry.metadata["help"] + ("" if default in (None, "") else f" (default {default})")
    if kind is list:
        group.add_argument(entry.name, help=help, **argument)
    elif kind is bool:
        group.add_argument("--" + entry.name.replace("_", "-"), action=argparse.BooleanOptionalAction, help=help)
    else:
        choices = entry.metadata["limits"]["choices"]
        if choices and kind is str:
            argument["metavar"] = "|".join(choices)
        group.add_argument("--" + entry.name.replace("_", "-"), help=help, **argument)


def _type(entry, section) -> tuple[type, bool]:
    """(type, may be None) of a field."""
    hint = typing.get_type_hints(section)[entry.name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not type(None))
    return (list if typing.get_origin(kind) is list else kind), type(None) in options


def _checked(entry, section, value, where):
    """`value` as the field's type, within its limits."""
    kind, optional = _type(entry, section)
    if value is None and optional:
        return None
    value = _converted(value, kind, entry.name, where)
    limits = entry.metadata["limits"]
    if limits["choices"] and value not in limits["choices"]:
        near = _nearest(str(value), [str(choice) for choice in limits["choices"]])
        raise Problem(f"{entry.name} '{value}' in {where}: not one of {', '.join(map(str, limits['choices']))}; "
                      f"{near}give one of them")
    bounds = [f"{word} {limit}" for word, limit, broken in (
        ("above", limits["above"], lambda limit: not value > limit),
        ("at least", limits["least"], lambda limit: not value >= limit),
        ("at most", limits["most"], lambda limit: not value <= limit)) if limit is not None and broken(limit)]
    if bounds or (kind is float and not math.isfinite(value)):
        must = " and ".join(bounds) or "finite"
        raise Problem(f"{entry.name} '{value}' in {where}: must be {must}; give another value (see --help)")
    return value


def _converted(value, kind, name, where):
    if kind is list:
        return [str(item) for item in value]
    if type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    try:
        if isinstance(value, str) and kind in (int, float):
            return kind(value)
    except ValueError:
        pass
    word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise Problem(f"{name} '{value}' in {where}: not {word}; give {word}")


def _read_file(kind, file: Path) -> dict:
    """The keys of a settings file. Keys of the other scripts are passed over: one file serves them all."""
    try:
        values = json.loads(file.read_bytes()) if file.suffix == ".json" else tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise Problem(f"config '{file}' in --config: no such file; the project's own lie in configs/") from None
    except OSError as error:
        raise Problem(f"config '{file}' in --config: cannot be read ({error.strerror}); give another file") from None
    except (ValueError, RecursionError) as error:
        raise Problem(f"config '{file}' in --config: not valid {'JSON' if file.suffix == '.json' else 'TOML'} "
                      f"({error}); mend the file") from None
    if not isinstance(values, dict):
        raise Problem(f"config '{file}' in --config: holds no keys; give one 'key = value' a line")
    here = _keys(kind)
    known = set().union(*map(_keys, KINDS))
    for key in values:
        if key not in known:
            raise Problem(f"unknown key '{key}' in {file}: no setting has that name; "
                          f"{_nearest(key, sorted(here))}see --dry-run for all of them")
    return {key: value for key, value in values.items() if key in here}


def _keys(kind) -> set[str]:
    return {entry.name for section in fields(kind) for entry in fields(section.type)}


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def _toml(value) -> str:
    if isinstance(value, (bool, str, list)):
        return json.dumps(value)
    return repr(value)
