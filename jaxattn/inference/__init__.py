"""What to do with a trained network: predict, evaluate, look inside, export."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.inference.evaluation import evaluate as evaluate
    from jaxattn.inference.evaluation import write_evaluation as write_evaluation
    from jaxattn.inference.export import export_model as export_model
    from jaxattn.inference.freezing import freeze as freeze
    from jaxattn.inference.hub import push as push
    from jaxattn.inference.hub import write_repository as write_repository
    from jaxattn.inference.inputs import read_inputs as read_inputs
    from jaxattn.inference.latency import measure_latency as measure_latency
    from jaxattn.inference.predict import Predictor as Predictor
    from jaxattn.inference.torch_files import export_torch as export_torch
    from jaxattn.inference.torch_files import import_torch as import_torch

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "Predictor": "jaxattn.inference.predict",
        "evaluate": "jaxattn.inference.evaluation",
        "export_model": "jaxattn.inference.export",
        "export_torch": "jaxattn.inference.torch_files",
        "freeze": "jaxattn.inference.freezing",
        "import_torch": "jaxattn.inference.torch_files",
        "measure_latency": "jaxattn.inference.latency",
        "push": "jaxattn.inference.hub",
        "read_inputs": "jaxattn.inference.inputs",
        "write_evaluation": "jaxattn.inference.evaluation",
        "write_repository": "jaxattn.inference.hub",
    },
)
