"""Train a network on labels: a teacher, a baseline, or with --stop-at-val-accuracy a defective
teacher.

python train_teacher.py --model seresnet50 --config configs/demo.toml
"""

import sys

from kd.config import parsing
from kd.config.settings import TeacherSettings
from kd.system.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code. Raises Problem."""
    every = parsing.parse(TeacherSettings, argv)
    if every:
        # Imported late: --help and a mistyped flag need not wait seconds for torch.
        from kd.runs.run import run_ranks

        run_ranks(every)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
