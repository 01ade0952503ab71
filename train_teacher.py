"""Train a network on labels: a teacher, a baseline, or with --stop-at-val-accuracy a defective teacher.

    python train_teacher.py --model seresnet50 --config configs/demo.toml
"""

import sys

from kd import config
from kd.errors import run_main
from kd.settings import TeacherSettings


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code. Raises Problem."""
    settings = config.parse(TeacherSettings, argv)
    if settings is None:
        return 0
    # Imported late: --help and a mistyped flag need not wait seconds for torch.
    from kd.folder import RunFolder, folder_of
    from kd.results.outcome import summary
    from kd.run import run
    from kd.runtime import say
    say(summary(run(settings), RunFolder(folder_of(settings))))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
