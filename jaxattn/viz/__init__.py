"""Figures from arrays; Matplotlib and Pillow are imported at the first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxattn.viz.attention_maps import Attention, make_attend
    from jaxattn.viz.classification import (
        plot_class_accuracy,
        plot_confusion_matrix,
        plot_reliability,
    )
    from jaxattn.viz.comparison import Band, Panel, plot_bands, plot_comparison
    from jaxattn.viz.figure import figure_to_array, save_figure
    from jaxattn.viz.pages import plot_pages
    from jaxattn.viz.runs import (
        plot_filters,
        plot_history,
        plot_images,
        plot_learning_rate,
    )

__all__ = [
    "Attention",
    "Band",
    "Panel",
    "figure_to_array",
    "make_attend",
    "plot_bands",
    "plot_class_accuracy",
    "plot_comparison",
    "plot_confusion_matrix",
    "plot_filters",
    "plot_history",
    "plot_images",
    "plot_learning_rate",
    "plot_pages",
    "plot_reliability",
    "save_figure",
]

_FILES = {
    "attention_maps": ("Attention", "make_attend"),
    "classification": (
        "plot_class_accuracy",
        "plot_confusion_matrix",
        "plot_reliability",
    ),
    "comparison": ("Band", "Panel", "plot_bands", "plot_comparison"),
    "figure": ("figure_to_array", "save_figure"),
    "pages": ("plot_pages",),
    "runs": ("plot_filters", "plot_history", "plot_images", "plot_learning_rate"),
}
_FILE = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports the file of a name at its first use."""
    if name not in _FILE:
        raise AttributeError(f"module 'jaxattn.viz' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxattn.viz.{_FILE[name]}"), name)
