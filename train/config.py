"""Every key of a config, its default and its meaning; a file in `configs/` starts from here and changes what it needs."""

import inspect
import json
import math
import os
from typing import Any

from ml_collections import ConfigDict

import dilax
from dilax.errors import UserError, did_you_mean

# Smallest and greatest value of a key; what it means stands below.
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "batch_size": (1, math.inf),
    "total_epochs": (1e-9, math.inf),
    "eval_every_epochs": (1e-9, math.inf),
    "log_every_steps": (1, math.inf),
    "checkpoint_every_steps": (1, math.inf),
    "keep_checkpoints": (1, math.inf),
    "data.validation": (0, 0.999),
    "data.per_class": (0, math.inf),
    "data.image_size": (0, math.inf),
    "data.memory_mb": (0, math.inf),
    "data.workers": (0, math.inf),
    "augment.crop_padding": (0, math.inf),
    "augment.rotate": (0, 180),
    "augment.scale": (0, math.inf),
    "augment.cutout": (0, math.inf),
    "augment.mixup": (0, math.inf),
    "augment.label_smoothing": (0, 1),
    "augment.colour": (0, 1),
    "segmentation.ignored_label": (0, 255),
    "segmentation.focal_gamma": (0, math.inf),
    "segmentation.aux_weight": (0, math.inf),
    "sequence.length": (0, math.inf),
    "sequence.context": (0, math.inf),
    "sequence.stride": (0, math.inf),
    "sequence.bands": (1, math.inf),
    "sequence.levels": (2, 65536),
    "sequence.test": (1e-9, 0.5),
    "sequence.examples": (0, math.inf),
    "sequence.sample": (0, math.inf),
    "sequence.temperature": (0, math.inf),
    "optim.lr": (0, math.inf),
    "optim.warmup_epochs": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.momentum": (0, 1),
    "optim.clip_norm": (0, math.inf),
    "optim.accumulate": (1, math.inf),
    "optim.ema_decay": (0, 1),
}
# Those that never see what is to be told: of rows of numbers, and of codes or waveforms.
ROW_MODELS = ("separable_tcn", "tcn")
CAUSAL_MODELS = (*ROW_MODELS, "bytenet", "wavenet")
SEQUENCE_TASKS = ("sequence_classification", "sequence_prediction", "language_model", "waveform", "separation")
# Keys of the part `augment` that one task alone knows.
ONLY_CLASSIFICATION = ("crop_padding", "rotate", "cutout", "mixup", "label_smoothing")
ONLY_SEGMENTATION = ("crop", "colour")
SEGMENTATION_LOSSES = ("cross_entropy", "focal", "dice")
TASK_NAMES = ("classification", "segmentation", *SEQUENCE_TASKS)
BALANCES = ("", "median_frequency")
# Of sequence_prediction: what a step of each kind of data is to give, and so its loss.
LOSS_OF = {"adding": "mse", "csv": "mse", "copy_memory": "categorical", "piano": "binary"}
POOLS, STEP_LOSSES, UNITS = ("last", "mean", "max"), ("mse", "binary", "categorical"), ("characters", "bytes")


def default_config(name: str) -> ConfigDict:
    """Return the config that all experiments start from; `name` is that of the run, and of its folder under runs/."""
    return ConfigDict(
        dict(
            name=name,
            seed=0,  # of the parameters, the order of the data, the augmentation, dropout and the validation split
            task="classification",  # a key of train.tasks.TASKS
            batch_size=128,  # over all devices
            total_epochs=20.0,  # passes over the training data
            eval_every_epochs=1.0,
            log_every_steps=20,
            checkpoint_every_steps=500,
            keep_checkpoints=2,  # the last N, beside the best
            dtype="float32",  # of the computation: "float32", "bfloat16" or "float16"; parameters stay float32
            parallel="jit",  # "jit" (the batch sharded over a mesh) or "pmap"
            report=True,  # write pictures and report.md at the end
            compilation_cache_dir="~/.cache/dilax",  # keeps compiled programs between runs; "" is off
            # Start from the best parameters of another run's folder; "" starts from scratch.
            init_from="",
            init_into="",  # put them into this module of the model, such as "backbone", the rest made anew; "" is the whole model
            head_reset=False,  # make the last layer anew instead of loading it
            init_except=(),  # regular expressions of parameters that are left as they are made, and need not fit
            frozen=(),  # regular expressions of parameters that are not trained; running statistics beneath stay too
            data=dict(
                name="digits",  # "digits", "digits8x8", "cells" (to segment), "folder", or any TFDS name such as "cifar10"
                # Sequences: "adding", "copy_memory", "csv", "piano", "text", "bible", "wav", "mixtures", "ucr:NAME", or images by pixels
                dir="",  # folder of TFDS datasets, else TFDS_DATA_DIR; of name="folder", "wav", "mixtures" that of the files; else the file
                download=True,  # fetch and prepare what is missing
                validation=0.1,  # share of the training split that decides between checkpoints; 0 trains on all, keeps the last
                classes=(),  # labels to keep; () is all
                per_class=0,  # training examples of each class to keep; 0 is all
                mean=(),  # of the colours, 0 to 1, which the model sees less this, over std; () is 0.5, so that they are -1 to 1
                std=(),
                image_size=0,  # side to resize and crop to (to segment: to fit into, and pad to); 0 leaves images as they are
                memory_mb=2048,  # decoded datasets above this are streamed by worker processes
                workers=2,  # worker processes of a streamed dataset
                # To segment:
                image_field="",  # feature of a TFDS set; "" is "image". With name="folder", folder of the images; "" is "images"
                mask_field="",  # the same of the masks; "" is "segmentation_mask", or "masks"
                mask_values=(),  # value of each class in the masks, in order, all others being ignored; () is 0, 1, 2, ...
                class_names=(),  # () is what the set says, or what its masks hold
                lists="",  # with name="folder": folder below dir of train.txt, val.txt, test.txt, a stem a line
            ),
            augment=dict(
                crop_padding=0,  # pixels: shift by up to this many each way
                flip=False,  # left to right, half of the images
                rotate=0.0,  # degrees: rotate by up to this much each way
                scale=0.0,  # zoom by a factor of up to 1 + this, or its inverse; in segmentation too, as flip
                cutout=0,  # pixels: side of a grey square laid over each image
                mixup=0.0,  # alpha of the Beta distribution of the mixing weight
                label_smoothing=0.0,  # share of the target spread over all classes
                # To segment:
                crop=(),  # (height, width) cut at random from the zoomed image, padded with ignored pixels; () is the image's own
                colour=0.0,  # change brightness, contrast and saturation by up to this share
            ),
            segmentation=dict(
                ignored_label=255,  # of pixels that count neither in the loss nor in the metrics
                loss="cross_entropy",  # "cross_entropy", "focal", "dice", or a sum of them such as "cross_entropy+dice"
                focal_gamma=2.0,
                class_weights=(),  # of cross-entropy and focal loss, one number a class; () weighs all alike
                balance="",  # "median_frequency": class weights from the pixels of the training split
                aux_weight=0.4,  # of the loss of the auxiliary head of a model that has one
            ),
            sequence=dict(
                length=0,  # steps of "adding", "copy_memory", the windows of texts, sounds and tables; longest series or labelled text
                context=0,  # steps at the start of a window that are read and not scored: the window before did; the first has none
                stride=0,  # of the windows to train on, from start to start: less and they overlap more; 0 is length - context, the most
                pool="last",  # what outputs at every step make of a whole sequence: those of the "last" step, their "mean" or "max"
                permute=False,  # images as sequences: their pixels in one fixed random order
                loss="mse",  # of sequence_prediction: "mse", "binary" (several may be true at a step) or "categorical" (one is)
                units="characters",  # of a text: "characters" or "bytes"
                bands=32,  # of a sound to classify: of the mel scale
                levels=256,  # of a sound's samples after mu-law
                test=0.05,  # share of the test split: the end of a text or a table, some sounds; that of data.validation is before it
                examples=0,  # training sequences that "adding" and "copy_memory" make; 0 is as many as in the paper
                sample=500,  # characters or sound samples that the report shows, drawn from the model; 0 is none
                temperature=1.0,  # of the draw
            ),
            model=model_config("dilated_cnn"),
            optim=dict(
                name="adamw",  # a key of train.optim.OPTIMISERS
                lr=1e-3,  # peak rate
                schedule="cosine",  # "cosine" to 0, "linear" to 0, or "constant"; all after the warm-up
                warmup_epochs=1.0,
                weight_decay=1e-4,  # of kernels; biases and normalisation are left out
                momentum=0.9,  # of sgd
                clip_norm=0.0,  # greatest global gradient norm; 0 is off
                accumulate=1,  # parts that a batch is run in, one after the other
                ema_decay=0.0,  # of an average of the parameters that is then evaluated and kept; 0 is off
                lr_multipliers=(),  # ((regular expression, factor), ...): the first that matches a parameter counts
            ),
        )
    )


def model_config(name: str, **fields: Any) -> dict[str, Any]:
    """Return a model's name and all of its fields that a config may set, with `fields` in place of their defaults."""
    if name not in dilax.models.MODELS:
        known = ", ".join(dilax.models.names())
        raise UserError(f"config.model.name={name!r} is unknown; known are {known}.{did_you_mean(name, dilax.models.MODELS)}")
    signature = inspect.signature(dilax.models.MODELS[name]).parameters
    # A backbone is a class, which the name stands for: no text could hold it.
    set_elsewhere = ("num_classes", "out_features", "sources", "vocabulary", "dtype", "axis_name", "backbone", "parent", "name")
    return {"name": name, **{key: p.default for key, p in signature.items() if key not in set_elsewhere}, **fields}


def model_class(config: ConfigDict) -> Any:
    """Return the class of config.model."""
    model = dilax.models.MODELS[config.model.name]
    return getattr(model, "func", model)


def takes(model: Any, argument: str) -> bool:
    """Return whether `__call__` of a class of models has an argument of that name."""
    return argument in inspect.signature(model.__call__).parameters


def check_variant(file: str, variant: str, known: tuple[str, ...]) -> None:
    """Refuse a variant, the word after the colon of `--config configs/digits.py:smoke`, that a config file does not have."""
    if variant not in known:
        raise UserError(f"configs/{os.path.basename(file)} has no variant {variant!r}; use one of {known}.{did_you_mean(variant, known)}")


def check(config: ConfigDict) -> None:
    """Refuse values that no run can use, before anything is made."""
    choices: dict[str, tuple[str, ...]] = {"parallel": ("jit", "pmap"), "dtype": ("float32", "bfloat16", "float16"), "task": TASK_NAMES}
    for key, known in choices.items():
        if config[key] not in known:
            raise UserError(f"config.{key}={config[key]!r} is unknown; use one of {known}.{did_you_mean(str(config[key]), known)}")
    flat = _flat(config.to_dict())
    for key, (lowest, highest) in LIMITS.items():
        if not lowest <= flat[key] <= highest:  # false for NaN, too
            raise UserError(f"config.{key}={flat[key]} is out of range; give a number from {lowest:g} to {highest:g}.")
    for key in ("mean", "std"):
        values = config.data[key]
        if not all(isinstance(value, int | float) and 0 <= value <= 1 and (key == "mean" or value) for value in values):
            raise UserError(
                f"config.data.{key}={tuple(values)} must be numbers from 0 to 1, one a channel, or (); divide those of 0 to 255."
            )
    if config.batch_size % config.optim.accumulate:
        raise UserError(
            f"config.batch_size={config.batch_size} cannot be run in config.optim.accumulate={config.optim.accumulate} parts; "
            "choose a divisor."
        )
    meaningless = {"segmentation": ONLY_CLASSIFICATION, "classification": ONLY_SEGMENTATION, "sequence_classification": ONLY_SEGMENTATION}
    for key in meaningless.get(config.task, (*ONLY_CLASSIFICATION, *ONLY_SEGMENTATION, "flip", "scale")):
        if config.augment[key]:
            raise UserError(f"config.augment.{key}={config.augment[key]} has no meaning for config.task={config.task!r}; leave it out.")
    if config.task == "segmentation":
        _check_segmentation(config)
    rows = config.data.name.partition(":")[0] in ("csv", "piano")
    tells_the_next = rows or config.task in ("language_model", "waveform")
    causal = ROW_MODELS if rows else CAUSAL_MODELS
    if tells_the_next and config.model.name not in causal:
        raise UserError(
            f"config.model.name={config.model.name!r} is no causal model of what config.task={config.task!r} on "
            f"data.name={config.data.name!r} asks it to tell; use one of {causal}.{did_you_mean(config.model.name, causal)}"
        )
    if tells_the_next and config.model.get("causal", True) is False:
        raise UserError(
            f"config.model.causal=False shows the network what config.task={config.task!r} on data.name={config.data.name!r} asks it to "
            "tell; leave it True."
        )
    for key, known in {"pool": POOLS, "loss": STEP_LOSSES, "units": UNITS}.items():
        if config.sequence[key] not in known:
            hint = did_you_mean(str(config.sequence[key]), known)
            raise UserError(f"config.sequence.{key}={config.sequence[key]!r} is unknown; use one of {known}.{hint}")
    loss = LOSS_OF.get(config.data.name, config.sequence.loss)
    if config.task == "sequence_prediction" and config.sequence.loss != loss:
        raise UserError(f"config.sequence.loss={config.sequence.loss!r} does not fit data.name={config.data.name!r}; set it to {loss!r}.")


def _check_segmentation(config: ConfigDict) -> None:
    segmentation, crop = config.segmentation, config.augment.crop
    for name in loss_names(config):
        if name not in SEGMENTATION_LOSSES:
            raise UserError(
                f"config.segmentation.loss={segmentation.loss!r} is unknown; use one of {SEGMENTATION_LOSSES}, or some of them joined "
                f"by +.{did_you_mean(name, SEGMENTATION_LOSSES)}"
            )
    if segmentation.balance not in BALANCES:
        hint = did_you_mean(segmentation.balance, BALANCES)
        raise UserError(f"config.segmentation.balance={segmentation.balance!r} is unknown; use one of {BALANCES}.{hint}")
    if segmentation.balance and segmentation.class_weights:
        raise UserError("config.segmentation.balance and config.segmentation.class_weights both set the weights of classes; leave one out.")
    if any(not 0 <= weight < math.inf for weight in segmentation.class_weights):
        raise UserError(f"config.segmentation.class_weights={tuple(segmentation.class_weights)} must be numbers of 0 or more.")
    if crop and (len(crop) != 2 or not all(isinstance(side, int) and side >= 1 for side in crop)):
        raise UserError(f"config.augment.crop={tuple(crop)} must be (height, width) in pixels, or () for the image's own.")


def loss_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the parts of config.segmentation.loss."""
    return tuple(name.strip() for name in config.segmentation.loss.split("+"))


def to_json(config: ConfigDict) -> str:
    """Return the config as text that `from_json` reads back, tuples as lists."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Return the config that `to_json` wrote; a key that did not exist then has its default."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    saved = tuples(json.loads(text))
    parts = {
        key: {**default, **saved.get(key, {})} if isinstance(default, dict) and key != "model" else saved.get(key, default)
        for key, default in default_config(saved["name"]).to_dict().items()
    }
    return ConfigDict({**saved, **parts})


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """List what changed from `old` to `new`, as `optim.lr: 0.1 -> 0.2`."""
    before, after = (_flat(json.loads(to_json(config))) for config in (old, new))
    keys = sorted({*before, *after})
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return items


def workdir_of(config: ConfigDict, workdir: str | None) -> str:
    """Return the folder of the run: as given, else runs/<name of the config>."""
    return os.path.abspath(workdir or os.path.join("runs", config.name))
