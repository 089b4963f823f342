"""Plots of dilations, receptive fields, training runs and predictions. Every function takes arrays and returns a matplotlib `Figure`.

Nothing is displayed and no global state is changed; use `save` to write a figure to a file. Arrays may be NumPy's or JAX's. matplotlib is
imported only when a figure is drawn.

dilation.py      which samples dilated kernels read
fields.py        receptive fields
training.py      learning curves, classifiers, kernels and feature maps
segmentation.py  masks
restoration.py   images before and after
volumes.py       slices of volumes with their masks
detection.py     boxes
sequences.py     series and waveforms
layers.py        what the layers of a network cost
"""

from dilax.plots.canvas import save
from dilax.plots.detection import detection_grid, detection_overlay, precision_recall
from dilax.plots.dilation import dilation_stacks, dilation_taps
from dilax.plots.fields import effective_receptive_fields, receptive_field_overlay
from dilax.plots.layers import layer_bars
from dilax.plots.restoration import restoration_grid
from dilax.plots.segmentation import class_bars, mask_colours, segmentation_comparison, segmentation_grid, segmentation_overlay
from dilax.plots.sequences import segment_bars, series_grid, step_outputs, waveforms
from dilax.plots.training import confusion_matrix, feature_maps, kernels, learning_curves, prediction_grid
from dilax.plots.volumes import volume_slices

__all__ = [
    "class_bars",
    "confusion_matrix",
    "detection_grid",
    "detection_overlay",
    "dilation_stacks",
    "dilation_taps",
    "effective_receptive_fields",
    "feature_maps",
    "kernels",
    "layer_bars",
    "learning_curves",
    "mask_colours",
    "precision_recall",
    "prediction_grid",
    "receptive_field_overlay",
    "restoration_grid",
    "save",
    "segment_bars",
    "segmentation_comparison",
    "segmentation_grid",
    "segmentation_overlay",
    "series_grid",
    "step_outputs",
    "volume_slices",
    "waveforms",
]
