"""Options that nothing reads are refused: those of other kinds of data, and those that other options turn off."""

from typing import Any

import pytest
from ml_collections import ConfigDict
from reading import check_call
from task_cases import CASES

from train.config import check, default_config, keys_of, model_config, unread
from train.keys import OTHER
from train.tasks import TASKS

OTHER_NAME = "cifar10/plain:3.0.2"
NUMBERED = {"ucr": "ucr:GunPoint"}


def config_of(task: str, **changes: Any) -> ConfigDict:
    config = default_config("test", task=task)
    config.model = ConfigDict(model_config("dilated_fcn" if task == "segmentation" else "tcn"))
    config.update_from_flattened_dict({key: value for key, value in changes.items() if not key.startswith("model.")})
    config.model.update({key.removeprefix("model."): value for key, value in changes.items() if key.startswith("model.")})
    return config


def another(value: Any) -> Any:
    """A value that is not the default."""
    if isinstance(value, bool):
        return not value
    return {int: 3, float: 0.25, tuple: (0.5,), str: "x"}[type(value)]


# What each kind of data reads, of the keys that not every kind reads.
IMAGES = "data.classes data.per_class data.image_size data.mean data.std"
PIXELS = (
    f"{IMAGES} sequence.permute augment.crop_padding augment.flip augment.rotate augment.scale augment.cutout augment.mixup data.validation"
)
MASKS = "data.dir data.image_field data.mask_field data.mask_values data.class_names"
SEGMENTS = "sequence.background sequence.smoothing sequence.threshold"
READ = {
    ("classification", "digits"): "",
    ("classification", "digits8x8"): "",
    ("classification", "folder"): "data.dir",
    ("classification", OTHER): "data.dir data.download",
    ("segmentation", "cells"): "data.image_size",
    ("segmentation", "ellipsoids"): "",
    ("segmentation", "folder"): f"{MASKS} data.lists data.on_bad data.image_size",
    ("segmentation", "volumes"): f"{MASKS} data.lists data.on_bad data.intensities data.test",
    ("segmentation", OTHER): f"{MASKS} data.download data.image_size",
    ("detection", "shapes"): "",
    ("detection", "voc_xml"): "data.dir data.lists data.class_names",
    ("detection", "coco_json"): "data.dir",
    ("detection", OTHER): "data.dir data.download",
    ("sequence_classification", "digits"): PIXELS,
    ("sequence_classification", "digits8x8"): PIXELS,
    ("sequence_classification", "folder"): f"data.dir {PIXELS}",
    ("sequence_classification", OTHER): f"data.dir data.download {PIXELS}",
    ("sequence_classification", "ucr"): "data.dir sequence.length",
    ("sequence_classification", "wav"): "data.dir sequence.length sequence.bands",
    ("sequence_classification", "text"): "data.dir sequence.length sequence.units",
    ("sequence_labelling", "recordings"): f"data.dir sequence.split {SEGMENTS}",
    ("sequence_labelling", "mat"): f"data.dir sequence.split {SEGMENTS}",
    ("sequence_labelling", "actions"): SEGMENTS,
    ("sequence_labelling", "conll"): "data.dir sequence.characters sequence.min_count sequence.word_dropout",
    ("restoration", "folder"): "data.dir data.test_dir data.on_bad",
    ("restoration", "photographs"): "",
    ("sequence_prediction", "adding"): "sequence.examples",
    ("sequence_prediction", "copy_memory"): "sequence.examples",
    ("sequence_prediction", "piano"): "data.dir",
    ("sequence_prediction", "csv"): "data.dir data.missing sequence.context sequence.stride sequence.test",
    ("language_model", "text"): "data.dir",
    ("language_model", "bible"): "",
}


@pytest.mark.parametrize(("task", "kind"), READ)
def test_what_another_kind_of_data_reads_is_refused(task, kind):
    particular = {key for (other, _), keys in READ.items() if other == task for key in keys.split()}
    name = OTHER_NAME if kind == OTHER else NUMBERED.get(kind, kind)
    for key in sorted(particular - {"data.validation"}):
        found = unread(config_of(task, **{"data.name": name, key: another(keys_of(task)[key].default)}))
        assert list(found) == [key] * (key not in READ[task, kind].split()), (key, found)


def test_every_kind_of_data_is_here():
    assert set(READ) == {(name, kind) for name, task in TASKS.items() if len(task.reads) > 1 for kind in task.reads}


ASKED: set[str] = set()


class Recorded(ConfigDict):
    """A part of a config that notes in `ASKED` which of its values are asked for."""

    def __getitem__(self, key: str) -> Any:
        ASKED.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("name", CASES)
def test_data_is_opened_without_what_it_is_said_not_to_read(name, tmp_path):
    case, task = CASES[name], TASKS[CASES[name].task]
    config = case.config(tmp_path)
    for section in ("data", "sequence"):
        if section in config:
            config[section] = Recorded(config[section].to_dict())
    ASKED.clear()
    task.open(config)
    particular = {key.partition(".")[2] for keys in task.reads.values() for key in keys}
    assert ASKED & particular <= {key.partition(".")[2] for key in task.reads[case.data.partition(":")[0]]}


MISTAKES: dict[str, tuple[tuple[str, dict[str, Any]], str]] = {
    "lists, for a set of TFDS": (
        ("segmentation", {"data.name": OTHER_NAME, "data.lists": "splits"}),
        "config.data.lists='splits' is not read with config.data.name='cifar10/plain:3.0.2'; it is read with 'folder' or 'volumes': remove it, "
        "or change config.data.name.",
    ),
    "a folder beside digits of a package": (
        ("classification", {"data.name": "digits8x8", "data.dir": "mine"}),
        "config.data.dir='mine' is not read with config.data.name='digits8x8'; it is read with 'folder' or a set of TFDS: remove it, or "
        "change config.data.name.",
    ),
    "a head of nothing": (
        ("classification", {"head_reset": True}),
        "config.head_reset=True is not read with config.init_from=''; it is read if that is set: remove it, or change config.init_from.",
    ),
    "the momentum of another optimiser": (
        ("classification", {"optim.momentum": 0.5}),
        "config.optim.momentum=0.5 is not read with config.optim.name='adamw'; it is read with 'sgd': remove it, or change "
        "config.optim.name.",
    ),
    "the exponent of another loss": (
        ("segmentation", {"data.name": "cells", "segmentation.loss": "cross_entropy+dice", "segmentation.focal_gamma": 1.0}),
        "config.segmentation.focal_gamma=1.0 is not read with config.segmentation.loss='cross_entropy+dice'; it is read with 'focal': "
        "remove it, or change config.segmentation.loss.",
    ),
    "weights of classes, which dice does not have": (
        ("segmentation", {"data.name": "cells", "segmentation.loss": "dice", "segmentation.class_weights": (1.0, 2.0, 3.0)}),
        "config.segmentation.class_weights=(1.0, 2.0, 3.0) is not read with config.segmentation.loss='dice'; it is read with "
        "'cross_entropy' or 'focal': remove it, or change config.segmentation.loss.",
    ),
    "the loss of a head that the model does not have": (
        ("segmentation", {"data.name": "cells", "segmentation.aux_weight": 0.2}),
        "config.segmentation.aux_weight=0.2 is not read with config.model.aux_head=False; it is read with True: remove it, or change "
        "config.model.aux_head.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(name):
    (task, changes), message = MISTAKES[name]
    check_call(lambda: check(config_of(task, **changes)), message)


READY = {
    "focal among several": ("segmentation", {"segmentation.loss": "cross_entropy + focal", "segmentation.focal_gamma": 1.0}),
    "a model with a head": ("segmentation", {"model.aux_head": True, "segmentation.aux_weight": 0.2}),
    "a head that is loaded": ("classification", {"init_from": "runs/x", "head_reset": True, "init_except": ("head",)}),
    "momentum of sgd": ("classification", {"optim.name": "sgd", "optim.momentum": 0.5}),
}


@pytest.mark.parametrize("name", READY)
def test_what_is_read_is_accepted(name):
    task, changes = READY[name]
    check(config_of(task, **{"data.name": "folder", **changes}))
