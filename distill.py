"""Train a student on labels and on a teacher. A missing teacher is trained first, with the same settings.

    python distill.py --teacher seresnet50 --student vgg11 --mode normal --config configs/demo.toml
"""

import sys

from kd import config
from kd.errors import run_main
from kd.settings import DistillSettings


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code. Raises Problem."""
    settings = config.parse(DistillSettings, argv)
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
