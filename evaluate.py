"""Evaluate finished runs on their test part, or on other pictures.

    python evaluate.py runs/synthetic-patient-48/normal/seresnet50-vgg11/seed0
"""

import sys
from pathlib import Path

from kd import config
from kd.errors import run_main
from kd.settings import EvaluateSettings


def main(argv: list[str] | None = None) -> int:
    """Parse, evaluate, print; returns the exit code. Raises Problem."""
    settings = config.parse(EvaluateSettings, argv, from_file=False)
    # Imported late: --help and a mistyped flag need not wait seconds for torch.
    from kd.results.evaluation import evaluate
    from kd.runtime import say
    for run in settings.evaluation.runs:
        say(run)
        evaluate(Path(run), settings.evaluation)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
