"""Figures from arrays; Matplotlib and Pillow are imported at the first use."""

import os
from typing import TYPE_CHECKING

from jaxattn import lazy
from jaxattn.viz import backend

if TYPE_CHECKING:
    from jaxattn.viz.attention_maps import Attention as Attention
    from jaxattn.viz.attention_maps import make_attend as make_attend
    from jaxattn.viz.classification import plot_class_accuracy as plot_class_accuracy
    from jaxattn.viz.classification import (
        plot_confusion_matrix as plot_confusion_matrix,
    )
    from jaxattn.viz.classification import plot_reliability as plot_reliability
    from jaxattn.viz.comparison import Band as Band
    from jaxattn.viz.comparison import Panel as Panel
    from jaxattn.viz.comparison import plot_bands as plot_bands
    from jaxattn.viz.comparison import plot_comparison as plot_comparison
    from jaxattn.viz.detection import BoxPanel as BoxPanel
    from jaxattn.viz.detection import class_color as class_color
    from jaxattn.viz.detection import colors_repeat as colors_repeat
    from jaxattn.viz.detection import draw_boxes as draw_boxes
    from jaxattn.viz.detection import plot_boxes as plot_boxes
    from jaxattn.viz.detection import plot_precision_recall as plot_precision_recall
    from jaxattn.viz.figure import figure_to_array as figure_to_array
    from jaxattn.viz.figure import save_figure as save_figure
    from jaxattn.viz.figure import shorten as shorten
    from jaxattn.viz.pages import plot_pages as plot_pages
    from jaxattn.viz.palette import make_palette as make_palette
    from jaxattn.viz.runs import plot_filters as plot_filters
    from jaxattn.viz.runs import plot_history as plot_history
    from jaxattn.viz.runs import plot_images as plot_images
    from jaxattn.viz.runs import plot_learning_rate as plot_learning_rate
    from jaxattn.viz.segmentation import overlay as overlay
    from jaxattn.viz.segmentation import plot_class_iou as plot_class_iou
    from jaxattn.viz.segmentation import plot_overlays as plot_overlays

if os.environ.get("MPLBACKEND"):
    backend.import_matplotlib()  # before a file here does

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "Attention": "jaxattn.viz.attention_maps",
        "BoxPanel": "jaxattn.viz.detection",
        "Band": "jaxattn.viz.comparison",
        "Panel": "jaxattn.viz.comparison",
        "class_color": "jaxattn.viz.detection",
        "colors_repeat": "jaxattn.viz.detection",
        "draw_boxes": "jaxattn.viz.detection",
        "figure_to_array": "jaxattn.viz.figure",
        "make_attend": "jaxattn.viz.attention_maps",
        "make_palette": "jaxattn.viz.palette",
        "overlay": "jaxattn.viz.segmentation",
        "plot_bands": "jaxattn.viz.comparison",
        "plot_boxes": "jaxattn.viz.detection",
        "plot_class_accuracy": "jaxattn.viz.classification",
        "plot_class_iou": "jaxattn.viz.segmentation",
        "plot_comparison": "jaxattn.viz.comparison",
        "plot_confusion_matrix": "jaxattn.viz.classification",
        "plot_filters": "jaxattn.viz.runs",
        "plot_history": "jaxattn.viz.runs",
        "plot_images": "jaxattn.viz.runs",
        "plot_learning_rate": "jaxattn.viz.runs",
        "plot_overlays": "jaxattn.viz.segmentation",
        "plot_pages": "jaxattn.viz.pages",
        "plot_precision_recall": "jaxattn.viz.detection",
        "plot_reliability": "jaxattn.viz.classification",
        "save_figure": "jaxattn.viz.figure",
        "shorten": "jaxattn.viz.figure",
    },
)
