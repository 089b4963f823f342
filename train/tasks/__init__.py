"""The tasks that networks are trained for, one file each; `TASKS` maps the values of config.task to them."""

from train.tasks.base import Task
from train.tasks.classification import Classification
from train.tasks.detection import Detection
from train.tasks.language_model import LanguageModel
from train.tasks.restoration import Restoration
from train.tasks.segmentation import Segmentation
from train.tasks.separation import Separation
from train.tasks.sequence_classification import SequenceClassification
from train.tasks.sequence_labelling import SequenceLabelling
from train.tasks.sequence_prediction import SequencePrediction
from train.tasks.waveform import Waveform

__all__ = ["TASKS", "Task"]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Classification,
        Segmentation,
        Detection,
        SequenceClassification,
        SequenceLabelling,
        SequencePrediction,
        LanguageModel,
        Waveform,
        Separation,
        Restoration,
    )
}
