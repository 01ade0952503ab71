"""Settings from dataclass defaults, then a TOML or JSON file, then flags; one clear line for each
mistake.
"""

import argparse
import dataclasses
import difflib
import itertools
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from kd.config.evaluate_settings import EvaluateSettings
from kd.config.settings import DistillSettings, TeacherSettings
from kd.system.errors import Problem, speaks

KINDS = (TeacherSettings, DistillSettings, EvaluateSettings)


def parse(
    kind,
    argv=None,
    from_file: bool = True,
    shows: dict[str, tuple[str, Callable[[], str]]] | None = None,
) -> list:
    """Settings of `kind` from the command line and, with `from_file`, --config: one for each run
    that is asked for.

    --dry-run prints them and leaves none, as does each flag of `shows`: flag -> (its help, what
    makes the text it prints). Raises Problem (exit code 2) for an unknown flag or key, a value of
    the wrong type and one out of range.
    """
    shows = shows or {}
    flags = vars(_parser(kind, from_file, shows).parse_args(argv))
    for flag, (_, text) in shows.items():
        if flags.pop(flag, False):
            _show(text() + "\n")
            return []
    file, dry_run = flags.pop("config", None), flags.pop("dry_run", False)
    values = {}
    if file is not None:
        values = {key: (value, f"{file}") for key, value in _read_file(kind, Path(file)).items()}
    values |= {key: (value, "--" + key.replace("_", "-")) for key, value in flags.items()}
    lists = {
        key: values[key][0]
        for key in _keys(kind, "several")
        if isinstance(values.get(key, ("",))[0], list)
    }
    for key, items in lists.items():
        if not items:
            raise Problem(f"{key} '[]' in {values[key][1]}: an empty list; give at least one")
    every = [
        build(kind, values | {key: (item, values[key][1]) for key, item in zip(lists, items)})
        for items in itertools.product(*lists.values())
    ]
    if dry_run:
        shown = flat(every[0]) | {
            key: items if len(items) > 1 else items[0] for key, items in lists.items()
        }
        _show(
            "".join(
                f"{key} = {_toml(value)}\n" for key, value in shown.items() if value is not None
            )
        )
        return []
    return every


def _show(text: str) -> None:
    if speaks():
        print(text, end="")


def build(kind, values: dict):
    """Settings of `kind` from {key: (value, where it was given)}; keys that are left out keep their
    defaults.
    """
    sections = {}
    for section in fields(kind):
        given = {}
        for entry in fields(section.type):
            if entry.name in values:
                given[entry.name] = _checked(entry, section.type, *values[entry.name])
        sections[section.name] = section.type(**given)
    return kind(**sections)


def flat(settings, identity_only: bool = False) -> dict:
    """All settings as one dictionary; with `identity_only` those alone that change what is
    computed.
    """
    return {
        entry.name: getattr(getattr(settings, section.name), entry.name)
        for section in fields(settings)
        for entry in fields(section.type)
        if entry.metadata["identity"] or not identity_only
    }


def replace(settings, **changes):
    """A copy with some keys changed, whatever section they stand in."""
    sections = {}
    for section in fields(settings):
        here = {entry.name for entry in fields(section.type)} & changes.keys()
        sections[section.name] = dataclasses.replace(
            getattr(settings, section.name), **{k: changes[k] for k in here}
        )
    return type(settings)(**sections)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        known = [flag for action in self._actions for flag in action.option_strings]
        word = message.rpartition("unrecognized arguments: ")[2].split("=")[0].split(" ")[0]
        if "unrecognized arguments" in message:
            raise Problem(
                f"unknown flag '{word}' in the command line: {self.prog} has none of that name; "
                f"{_nearest(word, known)}see --help"
            )
        raise Problem(f"command line of {self.prog}: {message}; see --help")


def _parser(kind, from_file: bool, shows: dict) -> argparse.ArgumentParser:
    parser = _Parser(
        description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for section in fields(kind):
        group = parser.add_argument_group(section.type.__doc__)
        for entry in fields(section.type):
            _add_flag(group, entry, section.type)
    if from_file:
        group = parser.add_argument_group("settings from a file")
        group.add_argument(
            "--config",
            metavar="FILE",
            help=(
                "TOML, or the settings.json of a run; flags win over it, and "
                "'none' clears an optional setting"
            ),
        )
        group.add_argument(
            "--dry-run", action="store_true", help="print the settings as TOML and stop"
        )
    for flag, (help, _) in shows.items():
        parser.add_argument(flag, dest=flag, action="store_true", help=help)
    return parser


def _add_flag(group, entry, section):
    kind, _ = _type(entry, section)
    argument = dict(entry.metadata["argument"])
    default = (
        entry.default
        if entry.default is not dataclasses.MISSING
        else " ".join(map(str, entry.default_factory()))
    )
    help = entry.metadata["help"] + ("" if default in (None, "") else f" (default {default})")
    if typing.get_origin(kind) is list:
        flag = entry.name if entry.metadata["positional"] else "--" + entry.name.replace("_", "-")
        group.add_argument(flag, help=help, **argument)
    elif kind is bool:
        group.add_argument(
            "--" + entry.name.replace("_", "-"), action=argparse.BooleanOptionalAction, help=help
        )
    else:
        choices = entry.metadata["limits"]["choices"]
        if choices and kind is str:
            argument["metavar"] = ("[+]" if entry.metadata["limits"]["joined"] else "|").join(
                choices
            )
        if entry.metadata["several"]:
            argument["nargs"] = "+"
        group.add_argument("--" + entry.name.replace("_", "-"), help=help, **argument)


def _type(entry, section) -> tuple[type, bool]:
    """(type, may be None) of a field."""
    hint = typing.get_type_hints(section)[entry.name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not type(None))
    return kind, type(None) in options


def _checked(entry, section, value, where):
    """`value` as the field's type, within its limits."""
    kind, optional = _type(entry, section)
    if optional and value in (None, "none"):  # the word clears what a settings file says
        return None
    if entry.metadata["limits"]["joined"] and isinstance(value, list):
        raise Problem(
            f"{entry.name} '{value}' in {where}: a list; give several in one run as"
            f" '{'+'.join(map(str, value))}'"
        )
    if typing.get_origin(kind) is not list:
        return _within_limits(entry, _converted(value, kind, entry.name, where), value, where)
    given = value if isinstance(value, list) else [value]
    if given in ([None], ["none"]) and not entry.default_factory():
        return []
    if not given and entry.default_factory():
        raise Problem(f"{entry.name} '[]' in {where}: an empty list; give at least one")
    return [
        _within_limits(
            entry, _converted(item, typing.get_args(kind)[0], entry.name, where), item, where
        )
        for item in given
    ]


def _within_limits(entry, value, given, where):
    limits = entry.metadata["limits"]
    for part in value.split("+") if limits["joined"] else [value]:
        if limits["choices"] and part not in limits["choices"]:
            near = _nearest(str(part), [str(choice) for choice in limits["choices"]])
            raise Problem(
                f"{entry.name} '{part}' in {where}: not one of"
                f" {', '.join(map(str, limits['choices']))}; {near}give one of them"
            )
    bounds = [
        f"{word} {limit}"
        for word, limit, broken in (
            ("above", limits["above"], lambda limit: not value > limit),
            ("at least", limits["least"], lambda limit: not value >= limit),
            ("at most", limits["most"], lambda limit: not value <= limit),
        )
        if limit is not None and broken(limit)
    ]
    if bounds or (type(value) is float and not math.isfinite(value)):
        must = " and ".join(bounds) or "finite"
        raise Problem(
            f"{entry.name} '{given}' in {where}: must be {must}; give another value (see --help)"
        )
    return value


def _converted(value, kind, name, where):
    try:
        if kind is str and isinstance(value, str) and "\0" not in os.fsdecode(os.fsencode(value)):
            return value
        if type(value) is kind is not str or (kind is float and type(value) is int):
            return kind(value)
        if isinstance(value, str) and kind in (int, float):
            return kind(value)
    except (ValueError, OverflowError):
        pass
    word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise Problem(f"{name} '{value}' in {where}: not {word}; give {word}")


def _read_file(kind, file: Path) -> dict:
    """The keys of a settings file.

    Keys of the other script are passed over: one file serves both.
    """
    try:
        values = (
            json.loads(file.read_bytes())
            if file.suffix == ".json"
            else tomllib.loads(file.read_bytes().decode("utf-8-sig"))
        )
    except FileNotFoundError:
        raise Problem(
            f"config '{file}' in --config: no such file; the project's own lie in configs/"
        ) from None
    except OSError as error:
        raise Problem(
            f"config '{file}' in --config: cannot be read ({error.strerror}); give another file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Problem(
            f"config '{file}' in --config: not valid {'JSON' if file.suffix == '.json' else 'TOML'}"
            f" ({error}); mend the file"
        ) from None
    if not isinstance(values, dict):
        raise Problem(f"config '{file}' in --config: holds no keys; give one 'key = value' a line")
    here = _keys(kind)
    known = set().union(*map(_keys, KINDS))
    for key in values:
        if key not in known:
            raise Problem(
                f"unknown key '{key}' in {file}: no setting has that name; "
                f"{_nearest(key, sorted(here))}see --dry-run for all of them"
            )
    return {key: value for key, value in values.items() if key in here}


def _keys(kind, only: str | None = None) -> list[str]:
    return [
        entry.name
        for section in fields(kind)
        for entry in fields(section.type)
        if not only or entry.metadata[only]
    ]


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def _toml(value) -> str:
    if isinstance(value, (bool, str, list)):
        return json.dumps(value)
    return repr(value)
