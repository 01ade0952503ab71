"""Command-line flags, made from the declared settings."""

import argparse
import dataclasses
import inspect
import typing
from dataclasses import fields

from kd.config.values import nearest, type_of
from kd.system.errors import Problem

NUMBERS = {int: "N", float: "X"}  # names of values in --help
_LONGEST = 80  # columns of choices that stand beside their flag


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The layout of --help, with a column of flags that most of them fit in."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        known = [flag for action in self._actions for flag in action.option_strings]
        word = message.rpartition("unrecognized arguments: ")[2].split("=")[0].split(" ")[0]
        if "unrecognized arguments" in message:
            raise Problem(
                f"Unknown flag '{word}': {self.prog} has no such flag. "
                f"{nearest(word, known)}See --help."
            )
        raise Problem(f"{message.removeprefix('argument ')}. See --help.")


def make_parser(kind, from_file: bool, shows: dict) -> argparse.ArgumentParser:
    """Return a parser with the flags of all settings of `kind`.

    In --help, the common options come first, followed by a group for each section.

    from_file  whether to add --config and --dry-run
    shows      flag -> (its help, function that returns the text it prints)
    """
    examples = "".join(f"\n  {example}" for example in kind.EXAMPLES)
    parser = _Parser(
        usage=f"%(prog)s [options]{_positionals(kind)}",
        description=inspect.getdoc(kind),
        epilog=f"examples:{examples}\n\nSee README.md for the documentation.",
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    common = parser.add_argument_group("common options")
    for section in fields(kind):
        group = parser.add_argument_group(section.type.__doc__)
        for entry in fields(section.type):
            _add_flag(common if entry.metadata["common"] else group, entry, section.type)
    if from_file:
        common.add_argument(
            "--config",
            metavar="FILE",
            help="read settings from a TOML file or a run's settings.json; flags take precedence,"
            " and 'none' clears an optional setting",
        )
        common.add_argument(
            "--dry-run", action="store_true", help="print the settings as TOML and exit"
        )
    for flag, (help, _) in shows.items():
        common.add_argument(flag, dest=flag, action="store_true", help=help)
    common.add_argument("-h", "--help", action="help", help="print this help and exit")
    return parser


def _positionals(kind) -> str:
    """Return the positional arguments of `kind` for the usage line, e.g. ` [RUN ...]`."""
    entries = [entry for section in fields(kind) for entry in fields(section.type)]
    names = [
        entry.metadata["argument"]["metavar"] for entry in entries if entry.metadata["positional"]
    ]
    return "".join(f" [{name} ...]" for name in names)


def _add_flag(group, entry, section) -> None:
    kind, _ = type_of(entry, section)
    argument = {"metavar": NUMBERS.get(kind)} | entry.metadata["argument"]
    argument["help"] = _help(entry)
    flag = "--" + entry.name.replace("_", "-")
    if typing.get_origin(kind) is list:
        name = entry.name if entry.metadata["positional"] else flag
        group.add_argument(name, **argument)
    elif kind is bool:
        del argument["metavar"]
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **argument)
    else:
        limits = entry.metadata["limits"]
        if limits["choices"] and not limits["joined"]:
            argument |= _choices(entry.name, limits["choices"], argument["help"])
        if entry.metadata["several"]:
            argument["nargs"] = "+"
        if entry.metadata["former"]:
            argument |= _add_switch(group, entry)
        group.add_argument(flag, **argument)


def _add_switch(group, entry) -> dict:
    """Add --no-NAME for a setting that was a switch in earlier versions; --help does not list it.

    Returns what --NAME needs to be valid without a value, too.
    """
    former = entry.metadata["former"]
    flag = "--no-" + entry.name.replace("_", "-")
    how = {"action": "store_const", "const": former[False], "help": argparse.SUPPRESS}
    group.add_argument(flag, dest=entry.name, **how)
    return {"nargs": "?", "const": former[True]}


def _choices(name: str, choices, words: str) -> dict:
    """Return the metavar and the help of a setting with choices.

    The choices are the metavar if they fit on a line, and a part of the help otherwise.
    """
    listed = "|".join(map(str, choices))
    if len(listed) <= _LONGEST:
        return {"metavar": listed, "help": words}
    return {"metavar": name.upper(), "help": f"{', '.join(map(str, choices))}: {words}"}


def _help(entry) -> str:
    """Return the help of a setting, followed by its default if it has one."""
    default = entry.default
    if default is dataclasses.MISSING:
        default = " ".join(map(str, entry.default_factory()))
    if default in (None, ""):
        return entry.metadata["help"]
    return f"{entry.metadata['help']} (default: {default})"
