"""Settings from dataclass defaults, then a TOML or JSON file, then flags.

One clear line for each mistake.
"""

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from kd.config.evaluate_settings import EvaluateSettings
from kd.config.flags import make_parser
from kd.config.settings import DistillSettings, TeacherSettings
from kd.config.values import checked, nearest
from kd.system.errors import Problem, speaks

KINDS = (TeacherSettings, DistillSettings, EvaluateSettings)


def parse(
    kind,
    argv=None,
    from_file: bool = True,
    shows: dict[str, tuple[str, Callable[[], str]]] | None = None,
) -> list:
    """Settings of `kind` from the command line and, with `from_file`, --config.

    One for each run that is asked for. --dry-run prints them and returns none, as does each flag of
    `shows`: flag -> (its help, what makes the text it prints). Raises Problem (exit code 2) for an
    unknown flag or key, a value of the wrong type and one out of range.
    """
    shows = shows or {}
    flags = vars(make_parser(kind, from_file, shows).parse_args(argv))
    for flag, (_, make_text) in shows.items():
        if flags.pop(flag, False):
            _print(make_text() + "\n")
            return []
    dry_run = flags.pop("dry_run", False)
    values = _given(kind, flags)
    lists = _lists(kind, values)
    every = []
    for items in itertools.product(*lists.values()):
        chosen = {key: (item, values[key][1]) for key, item in zip(lists, items)}
        every.append(build(kind, values | chosen))
    if dry_run:
        _print(_as_toml(every[0], lists))
        return []
    return every


def _given(kind, flags: dict) -> dict:
    """{key: (value, where it was given)} of the flags and of the file in --config; flags win."""
    file, values = flags.pop("config", None), {}
    if file is not None:
        for key, value in _read_file(kind, Path(file)).items():
            values[key] = value, f"{file}"
    for key, value in flags.items():
        values[key] = value, "--" + key.replace("_", "-")
    return values


def _lists(kind, values: dict) -> dict[str, list]:
    """Those settings that were given as a list, for one run after the other."""
    lists = {}
    for key in _keys(kind, "several"):
        value, where = values.get(key, ("", ""))
        if isinstance(value, list):
            lists[key] = value
            if not value:
                raise Problem(f"{key} '[]' in {where}: an empty list; give at least one")
    return lists


def _as_toml(settings, lists: dict[str, list]) -> str:
    """Settings as a TOML file; in place of each value of `lists` the whole list."""
    values = flat(settings)
    for key, items in lists.items():
        values[key] = items if len(items) > 1 else items[0]
    lines = [f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None]
    return "".join(lines)


def _print(text: str) -> None:
    if speaks():
        print(text, end="")


def build(kind, values: dict):
    """Settings of `kind` from {key: (value, where it was given)}.

    Keys that are left out keep their defaults.
    """
    sections = {}
    for section in fields(kind):
        given = {}
        for entry in fields(section.type):
            if entry.name in values:
                given[entry.name] = checked(entry, section.type, *values[entry.name])
        sections[section.name] = section.type(**given)
    return kind(**sections)


def flat(settings, identity_only: bool = False) -> dict:
    """All settings as one dictionary; with `identity_only`, those that change what is computed."""
    values = {}
    for section in fields(settings):
        own = getattr(settings, section.name)
        for entry in fields(section.type):
            if entry.metadata["identity"] or not identity_only:
                values[entry.name] = getattr(own, entry.name)
    return values


def replace(settings, **changes):
    """A copy with some keys changed, whatever section they stand in."""
    sections = {}
    for section in fields(settings):
        names = {entry.name for entry in fields(section.type)}
        own = {key: value for key, value in changes.items() if key in names}
        sections[section.name] = dataclasses.replace(getattr(settings, section.name), **own)
    return type(settings)(**sections)


def _read_file(kind, file: Path) -> dict:
    """The keys of a settings file.

    Keys of the other script are passed over: one file serves both.
    """
    language = "JSON" if file.suffix == ".json" else "TOML"
    try:
        if language == "JSON":
            values = json.loads(file.read_bytes())
        else:
            values = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
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
            f"config '{file}' in --config: not valid {language} ({error}); mend the file"
        ) from None
    if not isinstance(values, dict):
        raise Problem(f"config '{file}' in --config: holds no keys; give one 'key = value' a line")
    return _keys_of(kind, values, file)


def _keys_of(kind, values: dict, file: Path) -> dict:
    """The values that `kind` has. Raises Problem for a key that no script has."""
    here = _keys(kind)
    known = set().union(*map(_keys, KINDS))
    for key in values:
        if key not in known:
            raise Problem(
                f"unknown key '{key}' in {file}: no setting has that name; "
                f"{nearest(key, sorted(here))}see --dry-run for all of them"
            )
    return {key: value for key, value in values.items() if key in here}


def _keys(kind, only: str | None = None) -> list[str]:
    """The names of all settings, or of those with some metadata."""
    names = []
    for section in fields(kind):
        for entry in fields(section.type):
            if not only or entry.metadata[only]:
                names.append(entry.name)
    return names


def _toml(value) -> str:
    if isinstance(value, (bool, str, list)):
        return json.dumps(value)
    return repr(value)
