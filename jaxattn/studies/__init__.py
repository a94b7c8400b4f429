"""Several runs: compared, swept, averaged, and the study of batch normalisation."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.studies.average import average_checkpoints as average_checkpoints
    from jaxattn.studies.bn_landscape import run_study as run_study
    from jaxattn.studies.compare import group_runs as group_runs
    from jaxattn.studies.compare import read_run as read_run
    from jaxattn.studies.trials import make_grid as make_grid
    from jaxattn.studies.trials import make_trials as make_trials
    from jaxattn.studies.trials import train as train

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "average_checkpoints": "jaxattn.studies.average",
        "group_runs": "jaxattn.studies.compare",
        "make_grid": "jaxattn.studies.trials",
        "make_trials": "jaxattn.studies.trials",
        "read_run": "jaxattn.studies.compare",
        "run_study": "jaxattn.studies.bn_landscape",
        "train": "jaxattn.studies.trials",
    },
)
