"""A setting: its default, its flag's help and the values that it allows."""

from dataclasses import field

LIMITS = {"choices": None, "above": None, "least": None, "most": None, "joined": False}


def option(default, help, *, identity=True, positional=False, several=False, metavar=None, **more):
    """A field with its flag's help and the values it allows.

    identity    False: the value may be another one when a run continues: where things lie, how
                often they are saved
    several     may be given as a list, for one run after the other
    metavar     as `argparse` has it
    more        `nargs`, as `argparse` has it, and limits: choices, above, least, most, joined (one
                or several of the choices, joined by +). Raises TypeError for anything else
    """
    argument = {"metavar": metavar, "nargs": more.pop("nargs", None)}
    unknown = more.keys() - LIMITS.keys()
    if unknown:
        raise TypeError(f"option() has no {', '.join(sorted(unknown))}")
    metadata = {
        "help": help,
        "limits": LIMITS | more,
        "identity": identity,
        "positional": positional,
        "several": several,
        "argument": {key: value for key, value in argument.items() if value is not None},
    }
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
