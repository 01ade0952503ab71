"""Paths of flags and files as they are meant: with ~ and environment variables replaced."""

import os
import re
from dataclasses import fields

from kd.config.values import assignment
from kd.system.errors import Problem

# The names of the values of settings that are paths, in --help.
PATHS = ("DIR", "FILE", "RUN", "PATH")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def with_paths(kind, values: dict) -> dict:
    """Return {key: (value, flag or file)} with all paths `expanded`.

    kind  the class of the settings. Values of a wrong type are left as they are
    """
    found = dict(values)
    for section in fields(kind):
        for entry in fields(section.type):
            is_path = entry.metadata["argument"].get("metavar") in PATHS
            if is_path and entry.name in values:
                value, where = values[entry.name]
                found[entry.name] = _expanded_value(entry.name, value, where), where
    return found


def _expanded_value(name: str, value, where: str):
    if isinstance(value, list):
        return [_expanded_value(name, item, where) for item in value]
    return expanded(value, assignment(name, value, where)) if isinstance(value, str) else value


def expanded(path: str, words: str) -> str:
    """Return a path with ~ and $NAME replaced, as a shell does; settings files have no shell.

    A path that exists as it is written stays as it is: a folder may be called $5.

    words  the setting and its value, for messages

    Raises Problem for a user or a variable that does not exist. Otherwise a folder called ~ would
    be made.
    """
    if not ("~" in path or "$" in path) or os.path.lexists(path):
        return path
    found = os.path.expandvars(os.path.expanduser(path))
    if found.startswith("~"):
        user = found.partition("/")[0]
        if not os.path.lexists(user):
            whose = f"of user '{user[1:]}'" if user[1:] else "of this user"
            raise Problem(
                f"{words} is not valid: the home folder {whose} is not known. Write the path in"
                " full, or ./~ for a folder of this name."
            )
    for part in found.split("/"):
        name = _VARIABLE.fullmatch(part)
        if name and not os.path.lexists(found):
            raise Problem(
                f"{words} is not valid: the environment variable {name[1] or name[2]} is not set."
                " Set it, or write the path in full."
            )
    return found
