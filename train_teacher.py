"""Train a network on labels: a teacher, a baseline, or with --stop-at-val-accuracy a defective teacher.

    python train_teacher.py --model seresnet50 --config configs/demo.toml
"""

import sys

from kd import config
from kd.errors import run_main
from kd.settings import TeacherSettings


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code. Raises Problem."""
    every = config.parse(TeacherSettings, argv)
    if every:
        # Imported late: --help and a mistyped flag need not wait seconds for torch.
        from kd.run import run_ranks
        run_ranks(every)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
