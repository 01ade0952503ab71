"""Train a network on labels only: a teacher, a baseline, or a defective teacher.

A defective teacher is one whose training stops early, at --stop-at-val-accuracy.

    python train_teacher.py --model seresnet50 --config configs/demo.toml
"""

import sys

from kd.config import parsing
from kd.config.settings import TeacherSettings
from kd.system.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train and return the exit code. Raises Problem."""
    every = parsing.parse(TeacherSettings, argv)
    if every:
        # Imported late, so that --help and a mistyped flag do not wait for torch.
        from kd.runs.run import run_ranks

        run_ranks(every)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
