"""Command-line flags from the declared settings."""

import argparse
import dataclasses
import typing
from dataclasses import fields

from kd.config.values import nearest, type_of
from kd.system.errors import Problem


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        known = [flag for action in self._actions for flag in action.option_strings]
        word = message.rpartition("unrecognized arguments: ")[2].split("=")[0].split(" ")[0]
        if "unrecognized arguments" in message:
            raise Problem(
                f"unknown flag '{word}' in the command line: {self.prog} has none of that name; "
                f"{nearest(word, known)}see --help"
            )
        raise Problem(f"command line of {self.prog}: {message}; see --help")


def make_parser(kind, from_file: bool, shows: dict) -> argparse.ArgumentParser:
    """The flags of all settings of `kind`, each section a group of --help."""
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


def _add_flag(group, entry, section) -> None:
    kind, _ = type_of(entry, section)
    argument = dict(entry.metadata["argument"], help=_help(entry))
    flag = "--" + entry.name.replace("_", "-")
    if typing.get_origin(kind) is list:
        name = entry.name if entry.metadata["positional"] else flag
        group.add_argument(name, **argument)
    elif kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **argument)
    else:
        limits = entry.metadata["limits"]
        if limits["choices"] and kind is str:
            argument["metavar"] = ("[+]" if limits["joined"] else "|").join(limits["choices"])
        if entry.metadata["several"]:
            argument["nargs"] = "+"
        group.add_argument(flag, **argument)


def _help(entry) -> str:
    """A setting's help, with its default where it has one."""
    default = entry.default
    if default is dataclasses.MISSING:
        default = " ".join(map(str, entry.default_factory()))
    if default in (None, ""):
        return entry.metadata["help"]
    return f"{entry.metadata['help']} (default {default})"
