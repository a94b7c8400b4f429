"""From a config, or from objects of your own, to a trained network."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.training.checkpoints.trained import Trained as Trained
    from jaxattn.training.checkpoints.trained import load_trained as load_trained
    from jaxattn.training.loop import train_and_evaluate as train_and_evaluate
    from jaxattn.training.run import Run as Run
    from jaxattn.training.run import build as build
    from jaxattn.training.state import TrainState as TrainState
    from jaxattn.training.state import create_state as create_state
    from jaxattn.training.steps import make_eval_step as make_eval_step
    from jaxattn.training.steps import make_train_step as make_train_step
    from jaxattn.training.trainer import Trainer as Trainer
    from jaxattn.training.trainer import Update as Update

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "Run": "jaxattn.training.run",
        "TrainState": "jaxattn.training.state",
        "Trained": "jaxattn.training.checkpoints.trained",
        "Trainer": "jaxattn.training.trainer",
        "Update": "jaxattn.training.trainer",
        "build": "jaxattn.training.run",
        "create_state": "jaxattn.training.state",
        "load_trained": "jaxattn.training.checkpoints.trained",
        "make_eval_step": "jaxattn.training.steps",
        "make_train_step": "jaxattn.training.steps",
        "train_and_evaluate": "jaxattn.training.loop",
    },
)
