"""Train a student on labels and on the outputs of a teacher.

A missing teacher is trained first, with the same settings.

    python distill.py --teacher seresnet50 --student vgg11 --mode normal --config configs/demo.toml
"""

import sys

from kd.config import parsing
from kd.config.listing import list_modes
from kd.config.settings import DistillSettings
from kd.system.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train and return the exit code. Raises Problem."""
    every = parsing.parse(
        DistillSettings,
        argv,
        shows={"--list-modes": ("print the tables of modes and knowledge and exit", list_modes)},
    )
    if every:
        # Imported late, so that --help and a mistyped flag do not wait for torch.
        from kd.runs.run import run_ranks

        run_ranks(every)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
