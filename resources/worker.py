"""A rank of a training that Dagster started: `python -m resources.worker <folder of a job>`, under torchrun.

Of Dagster it needs `dagster_pipes` alone, a package without dependencies.
"""

import os
import sys
from pathlib import Path

from dagster_pipes import open_dagster_pipes

from model import worker


def main(folder: Path) -> None:
    """As `model.worker.main`; the first rank tells lines and facts to Dagster."""
    if int(os.environ["RANK"]):
        worker.main(folder)
        return
    with open_dagster_pipes() as pipes:
        worker.main(folder, tell=pipes.log.info, report=pipes.report_custom_message)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
