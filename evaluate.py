"""Evaluate finished runs, compare them in tables, or check a data set.

python evaluate.py runs/synthetic-patient-48/normal/seresnet50-vgg11/seed0
python evaluate.py --tables runs
"""

import os
import sys

from kd.config import parsing
from kd.config.evaluate_settings import EvaluateSettings
from kd.system.errors import Problem, run_main


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, carry out its action and return the exit code. Raises Problem."""
    [settings] = parsing.parse(EvaluateSettings, argv, from_file=False)
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise Problem("evaluate.py works in a single process. Run it without torchrun.")
    # Imported late, so that --help and a mistyped flag do not wait for torch.
    from kd.studies.commands import carry_out

    carry_out(settings)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
