"""Conversion of a value from a flag or a file to the type of its setting, within its limits."""

import difflib
import json
import math
import os
import shlex
import types
import typing

from kd.system.errors import Problem
from kd.system.messages import shortened

LONGEST = 100  # characters of a value in a message


def type_of(entry, section) -> tuple[type, bool]:
    """Return (type, whether None is allowed) of a field."""
    hint = typing.get_type_hints(section)[entry.name]
    if not isinstance(hint, types.UnionType):
        return hint, False
    options = typing.get_args(hint)
    kind = next(option for option in options if option is not type(None))
    return kind, type(None) in options


def checked(entry, section, value, where):
    """Return `value` as the type of the field, within its limits.

    where  the flag or the file that sets the value, for messages

    Raises Problem for a value of the wrong type or out of range.
    """
    kind, optional = type_of(entry, section)
    value = present(entry, value)
    if optional and value in (None, "none"):  # 'none' clears a value of a settings file
        return None
    if entry.metadata["limits"]["joined"] and isinstance(value, list):
        raise Problem(
            f"{assignment(entry.name, value, where)} is not valid: it must not be a list. Join"
            f" several values with '+', as in '{'+'.join(map(str, value))}'."
        )
    if typing.get_origin(kind) is not list:
        return _within_limits(entry, _converted(value, kind, entry.name, where), value, where)
    given = value if isinstance(value, list) else [value]
    if given in ([None], ["none"]) and not entry.default_factory():
        return []
    if not given and entry.default_factory():
        raise empty_list(entry.name, where)
    [item_kind] = typing.get_args(kind)
    found = []
    for item in given:
        converted = _converted(item, item_kind, entry.name, where)
        found.append(_within_limits(entry, converted, item, where))
    return found


def present(entry, value):
    """Return a value of a setting, or what replaces it if only earlier versions wrote it."""
    for former, now in entry.metadata["former"].items():
        if type(value) is type(former) and value == former:  # 1 is not True
            return now
    return value


def assignment(name: str, value, where: str) -> str:
    """Return a setting, its value and its place, for messages.

    `--epochs 0` if `where` is a flag, or `epochs = 0 in grid.toml` if it is a file.
    """
    if where.startswith("--"):
        return f"{where} {shortened(shlex.quote(str(value)), LONGEST)}"
    return f"{name} = {shortened(_as_in_file(value), LONGEST)} in {where}"


def empty_list(name: str, where: str) -> Problem:
    """Return the Problem of a list that must have at least one value."""
    return Problem(
        f"{assignment(name, [], where)} is not valid: the list is empty. Set at least one value."
    )


def _as_in_file(value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_as_in_file, value))}]"
    if value is None or isinstance(value, (bool, str)):
        return json.dumps(value)
    return str(value)


def _within_limits(entry, value, given, where):
    limits = entry.metadata["limits"]
    for item in value.split("+") if limits["joined"] else [value]:
        if limits["choices"] and item not in limits["choices"]:
            near = nearest(str(item), [str(choice) for choice in limits["choices"]])
            raise Problem(
                f"{assignment(entry.name, item, where)} is not valid: it must be one of"
                f" {', '.join(map(str, limits['choices']))}. {near}See --help."
            )
    bounds = _broken_bounds(limits, value)
    if bounds or (type(value) is float and not math.isfinite(value)):
        must = " and ".join(bounds) or "finite"
        raise Problem(
            f"{assignment(entry.name, given, where)} is not valid: it must be {must}. See --help."
        )
    return value


def _broken_bounds(limits: dict, value) -> list[str]:
    """Return the bounds that a value violates, in words. NaN violates all of them."""
    broken = []
    if limits["above"] is not None and not value > limits["above"]:
        broken.append(f"above {limits['above']}")
    if limits["least"] is not None and not value >= limits["least"]:
        broken.append(f"at least {limits['least']}")
    if limits["most"] is not None and not value <= limits["most"]:
        broken.append(f"at most {limits['most']}")
    return broken


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
    word = {int: "a whole number", float: "a number", bool: "true or false", str: "plain text"}
    raise Problem(
        f"{assignment(name, value, where)} is not valid: it must be {word[kind]}. See --help."
    )


def nearest(word: str, known: list[str]) -> str:
    """Return a question for the known name most similar to a word, followed by a space.

    Names that begin with the word come first. The result is empty if no name is similar.
    """
    near = [name for name in known if word and name.startswith(word)]
    near += difflib.get_close_matches(word, known, n=1)
    return f"Did you mean '{near[0]}'? " if near else ""
