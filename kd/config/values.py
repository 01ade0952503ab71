"""A value from a flag or a file as the type of its setting, within its limits."""

import difflib
import math
import os
import types
import typing

from kd.system.errors import Problem


def type_of(entry, section) -> tuple[type, bool]:
    """(type, may be None) of a field."""
    hint = typing.get_type_hints(section)[entry.name]
    if not isinstance(hint, types.UnionType):
        return hint, False
    options = typing.get_args(hint)
    kind = next(option for option in options if option is not type(None))
    return kind, type(None) in options


def checked(entry, section, value, where):
    """`value` as the field's type, within its limits.

    where: what gave it, for the message. Raises Problem.
    """
    kind, optional = type_of(entry, section)
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
    [item_kind] = typing.get_args(kind)
    found = []
    for item in given:
        converted = _converted(item, item_kind, entry.name, where)
        found.append(_within_limits(entry, converted, item, where))
    return found


def _within_limits(entry, value, given, where):
    limits = entry.metadata["limits"]
    for part in value.split("+") if limits["joined"] else [value]:
        if limits["choices"] and part not in limits["choices"]:
            near = nearest(str(part), [str(choice) for choice in limits["choices"]])
            raise Problem(
                f"{entry.name} '{part}' in {where}: not one of"
                f" {', '.join(map(str, limits['choices']))}; {near}give one of them"
            )
    bounds = _broken_bounds(limits, value)
    if bounds or (type(value) is float and not math.isfinite(value)):
        must = " and ".join(bounds) or "finite"
        raise Problem(
            f"{entry.name} '{given}' in {where}: must be {must}; give another value (see --help)"
        )
    return value


def _broken_bounds(limits: dict, value) -> list[str]:
    """The bounds that a value does not keep, in words. NaN keeps none."""
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
    word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise Problem(f"{name} '{value}' in {where}: not {word}; give {word}")


def nearest(word: str, known: list[str]) -> str:
    """The known name that is most like a word, as a question; empty where none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'? " if near else ""
