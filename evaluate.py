"""Evaluate finished runs, compare them in tables, look at their data.

python evaluate.py runs/synthetic-patient-48/normal/seresnet50-vgg11/seed0
python evaluate.py --tables runs
"""

import os
import sys

from kd.config import parsing
from kd.config.evaluate_settings import EvaluateSettings
from kd.system.errors import Problem, run_main


def main(argv: list[str] | None = None) -> int:
    """Parse, do what is asked for, print; returns the exit code. Raises Problem."""
    [settings] = parsing.parse(EvaluateSettings, argv, from_file=False)
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise Problem("evaluate.py under torchrun: works in one process; run it without")
    # Imported late: --help and a mistyped flag need not wait seconds for torch.
    from kd.studies.commands import carry_out

    carry_out(settings)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
