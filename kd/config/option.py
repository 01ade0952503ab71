"""Declaration of a setting: its default, the help of its flag and the values it allows."""

from dataclasses import field

LIMITS = {"choices": None, "above": None, "least": None, "most": None, "joined": False}


def option(
    default,
    help,
    *,
    common=False,
    identity=True,
    positional=False,
    several=False,
    metavar=None,
    **more,
):
    """Return a dataclass field that declares a setting.

    default     the default value
    help        help text of the flag, one line if possible
    common      whether --help lists the flag in its first group, before all sections
    identity    whether the setting changes what is computed. False: a run may be continued with
                another value, as for paths and for how often a run is saved
    positional  whether the command line takes the values without a flag
    several     whether a list of values may be given, with one run for each of them
    metavar     name of the value in --help, as in `argparse`
    more        `nargs`, as in `argparse`; limits of the value: `choices`, `above`, `least`, `most`
                and `joined` (one or more of the choices, joined by +); and `former`: {value that
                earlier versions wrote: the same value now}

    Raises TypeError for any other keyword.
    """
    argument = {"metavar": metavar, "nargs": more.pop("nargs", None)}
    former = more.pop("former", {})
    unknown = more.keys() - LIMITS.keys()
    if unknown:
        raise TypeError(f"option() has no {', '.join(sorted(unknown))}")
    metadata = {
        "help": help,
        "limits": LIMITS | more,
        "common": common,
        "identity": identity,
        "positional": positional,
        "several": several,
        "former": former,
        "argument": {key: value for key, value in argument.items() if value is not None},
    }
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
