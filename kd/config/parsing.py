"""Settings from dataclass defaults, then a TOML or JSON file, then flags.

Every mistake is reported in one line.
"""

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from kd.config.earlier import as_present
from kd.config.evaluate_settings import EvaluateSettings
from kd.config.flags import make_parser
from kd.config.paths import expanded, with_paths
from kd.config.settings import DistillSettings, TeacherSettings
from kd.config.values import checked, empty_list, nearest
from kd.system.errors import Problem, reports_to_user
from kd.system.messages import first_line

KINDS = (TeacherSettings, DistillSettings, EvaluateSettings)


def parse(
    kind,
    argv=None,
    from_file: bool = True,
    shows: dict[str, tuple[str, Callable[[], str]]] | None = None,
) -> list:
    """Return the settings of `kind`, one for each run that the command line asks for.

    from_file  whether settings are also read from the file in --config
    shows      flags that only print a text: flag -> (its help, function that returns the text)

    --dry-run and the flags of `shows` print their text, and the list is empty. Raises Problem (exit
    code 2) for an unknown flag or key, and for a value of the wrong type or out of range.
    """
    shows = shows or {}
    flags = vars(make_parser(kind, from_file, shows).parse_args(argv))
    for flag, (_, make_text) in shows.items():
        if flags.pop(flag, False):
            _print(make_text() + "\n")
            return []
    dry_run = flags.pop("dry_run", False)
    values = with_paths(kind, _given(kind, flags))
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
    """Return {key: (value, flag or file)} of the file in --config and the flags, which win."""
    file, values = flags.pop("config", None), {}
    if file is not None:
        file = expanded(file, f"--config {file}")
        for key, value in _read_file(kind, Path(file)).items():
            values[key] = value, f"{file}"
    for key, value in flags.items():
        values[key] = value, "--" + key.replace("_", "-")
    return values


def _lists(kind, values: dict) -> dict[str, list]:
    """Return the settings that have a list of values, with one run for each of them."""
    lists = {}
    for key in _keys(kind, "several"):
        value, where = values.get(key, ("", ""))
        if isinstance(value, list):
            lists[key] = value
            if not value:
                raise empty_list(key, where)
    return lists


def _as_toml(settings, lists: dict[str, list]) -> str:
    """Return settings as a TOML file, with the complete list for each key of `lists`."""
    values = flat(settings)
    for key, items in lists.items():
        values[key] = items if len(items) > 1 else items[0]
    lines = [f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None]
    return "".join(lines)


def _print(text: str) -> None:
    if reports_to_user():
        print(text, end="")


def build(kind, values: dict):
    """Return settings of `kind` from {key: (value, flag or file that sets it)}.

    Missing keys keep their defaults, and keys that `kind` does not have are ignored. Raises Problem
    for a value of the wrong type or out of range.
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
    """Return all settings as one dictionary {key: value}.

    identity_only  only those that change what is computed
    """
    values = {}
    for section in fields(settings):
        own = getattr(settings, section.name)
        for entry in fields(section.type):
            if entry.metadata["identity"] or not identity_only:
                values[entry.name] = getattr(own, entry.name)
    return values


def replace(settings, **changes):
    """Return a copy of settings with some keys changed, whatever their section."""
    sections = {}
    for section in fields(settings):
        names = {entry.name for entry in fields(section.type)}
        own = {key: value for key, value in changes.items() if key in names}
        sections[section.name] = dataclasses.replace(getattr(settings, section.name), **own)
    return type(settings)(**sections)


def _read_file(kind, file: Path) -> dict:
    """Return {key: value} of a settings file.

    Keys of another script are skipped, so that one file can be used with several scripts.
    """
    language = "JSON" if file.suffix == ".json" else "TOML"
    try:
        if language == "JSON":
            values = json.loads(file.read_bytes())
        else:
            values = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise Problem(
            f"--config '{file}' cannot be read: no such file. The project's own files are in"
            " configs/."
        ) from None
    except OSError as error:
        raise Problem(
            f"--config '{file}' cannot be read: {error.strerror}. Check the path, or use another"
            " file."
        ) from None
    except (ValueError, RecursionError) as error:
        raise Problem(
            f"--config '{file}' is not valid {language}: {first_line(error)}. Fix the file."
        ) from None
    if not isinstance(values, dict):
        raise Problem(
            f"--config '{file}' is not valid: it must contain a JSON object of settings. Use the"
            " settings.json of a run, or a TOML file with one 'key = value' per line."
        )
    if language == "JSON":  # settings.json of a run, perhaps of an earlier version
        values = as_present(kind, values)
    return _keys_of(kind, values, file)


def _keys_of(kind, values: dict, file: Path) -> dict:
    """Return the values of keys that `kind` has. Raises Problem for a key that no script has."""
    here = _keys(kind)
    known = set().union(*map(_keys, KINDS))
    for key in values:
        if key not in known:
            raise Problem(
                f"Unknown key '{key}' in {file}: there is no such setting. "
                f"{nearest(key, sorted(here))}{_of_run(key)}--dry-run prints all of them."
            )
    return {key: value for key, value in values.items() if key in here}


def _of_run(key: str) -> str:
    """Return where settings are if `key` is one of another file of a run."""
    return "A run's settings are in its settings.json. " if key == "schema_version" else ""


def _keys(kind, only: str | None = None) -> list[str]:
    """Return the names of all settings, or only of those for which the metadata `only` is set."""
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
