"""A tiny run of every kind of data of every task: its files, its config, what it predicts from."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from train.config import default_config, model_config
from train.data.readers import sound

RATE = 8000
WORDS = "the rain in spain stays mainly in the plain\nand the grain\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny run.

    Attributes:
        task: Value of config.task.
        data: Value of config.data.name.
        write: Writes the data into a folder and returns config.data.dir.
        model: Name and fields of the model, without batch statistics and dropout, so that a batch in parts equals the whole.
        changes: Of the config.
        inputs: Names of files below the folder to predict from, or prompts.
        lines: Number of lines that predict prints for them.
        streamed: What --stream reads, as a function of the folder; None if the task does not stream.
        wrong: A mistake in what predict is given, and how its message begins.
    """

    task: str
    data: str
    write: Callable[[pathlib.Path], str]
    model: tuple[str, dict[str, Any]]
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    lines: int = 0
    streamed: Callable[[pathlib.Path], bytes] | None = None
    wrong: tuple[str, str] = ("", "")

    def config(self, folder: pathlib.Path, **changes: Any) -> ConfigDict:
        """Write the data, if it is not there, and return the config."""
        data = folder / "data"
        if not data.exists():
            data.mkdir(parents=True)
        config = default_config("tiny", task=self.task)
        config.data.name, config.data.dir = self.data, self.write(data)
        config.model = ConfigDict(model_config(self.model[0], **self.model[1]))
        config.batch_size, config.log_every_steps = 8, 1
        config.total_epochs, config.eval_every_epochs = 2.0, 1.0
        config.optim.update(lr=0.01, warmup_epochs=0.0)
        config.compilation_cache_dir = ""
        config.update_from_flattened_dict({**self.changes, **changes})
        return config


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def write_images(folder: pathlib.Path) -> str:
    rng = random(0)
    for label, level in (("dark", 60), ("light", 190)):
        (folder / label).mkdir(exist_ok=True)
        for i in range(20):
            Image.fromarray(rng.integers(level - 50, level + 50, (10, 12, 3), np.uint8)).save(folder / label / f"{i}.png")
    return str(folder)


def write_photographs(folder: pathlib.Path) -> str:
    rng = random(5)
    for i in range(12):
        waves = np.add.outer(np.sin(np.arange(52) / rng.uniform(2, 9)), np.cos(np.arange(44) / rng.uniform(2, 9)))
        pixels = np.clip(128 + 50 * waves + rng.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels if i % 2 else pixels.T).save(folder / f"{i}.png")
    return str(folder)


def write_masks(folder: pathlib.Path) -> str:
    rng = random(1)
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    for i in range(30):
        mask = np.zeros((12, 16), np.uint8)
        mask[:, : rng.integers(4, 12)] = 1
        mask[rng.integers(12)] = 255
        image = np.where(mask[..., None] == 1, 180, 70) + rng.integers(-40, 40, (12, 16, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return str(folder)


def write_boxes(folder: pathlib.Path) -> str:
    """Pascal VOC: bright and dark squares on grey."""
    rng = random(5)
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(exist_ok=True)
    for i in range(24):
        image, objects = rng.integers(110, 140, (24, 40, 3), np.uint8), []
        for column in range(0, 40, 20)[: 1 + i % 2]:
            left, top, side = column + int(rng.integers(0, 6)), int(rng.integers(0, 10)), int(rng.integers(8, 14))
            name, level = (("bright", 230), ("dark", 20))[rng.integers(2)]
            image[top : top + side, left : left + side] = level
            corners = "".join(
                f"<{key}>{edge}</{key}>" for key, edge in (("xmin", left), ("ymin", top), ("xmax", left + side), ("ymax", top + side))
            )
            objects.append(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>")
        Image.fromarray(image).save(folder / "JPEGImages" / f"{i}.png")
        (folder / "Annotations" / f"{i}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    return str(folder)


def write_volumes(folder: pathlib.Path) -> str:
    """Volumes of different sizes, types, units and orientations."""
    import nibabel  # pyright: ignore[reportMissingImports]

    rng = random(5)
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for i in range(24):
        shape = rng.integers(5, 9, 3)
        mask = np.zeros(shape, np.uint8)
        mask[: rng.integers(2, 4), :, 1:3] = 1
        values = 1000 * 10 ** (i % 3) * (mask + 0.2 * rng.normal(size=shape))
        affine = np.diag([(-1.0) ** i, 2.0, 1.0, 1.0])
        for name, array in {"images": values.astype((np.float32, np.int32)[i % 2]), "labels": mask}.items():
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / name / f"{i:02}.nii.gz")
    return str(folder)


def write_series(folder: pathlib.Path) -> str:
    rng = random(2)
    for split in ("TRAIN", "TEST"):
        lines = ["@problemName toy", "@univariate true", "@classLabel true up down", "@data"]
        for i in range(24):
            values = (1 if i % 2 == 0 else -1) * np.arange(12 + i % 5) / 5 + 0.1 * rng.normal(size=12 + i % 5)
            lines.append(",".join(f"{value:.4f}" for value in values) + f":{('up', 'down')[i % 2]}")
        (folder / f"toy_{split}.ts").write_text("\n".join(lines) + "\n")
    return str(folder)


def tone(pitch: float, samples: int, seed: int) -> np.ndarray:
    time, rng = np.arange(samples) / RATE, random(seed)
    return (0.4 * np.sin(2 * np.pi * pitch * time + seed) + 0.02 * rng.normal(size=samples)).clip(-1, 1).astype(np.float32)


def write_sounds(folder: pathlib.Path) -> str:
    for label, pitch in (("high", 1500), ("low", 300)):
        (folder / label).mkdir(exist_ok=True)
        for i in range(12):
            sound.write_wav(folder / label / f"{i}.wav", tone(pitch, 1600 + 160 * i, i), RATE)
    return str(folder)


def write_mixtures(folder: pathlib.Path) -> str:
    for name in ("mix", "s1", "s2"):
        (folder / name).mkdir(exist_ok=True)
    for i in range(24):
        low, high = tone(200, 400 + 30 * (i % 4), i), tone(1500, 400 + 30 * (i % 4), i + 100)
        for name, samples in {"mix": low + high, "s1": low, "s2": high}.items():
            sound.write_wav(folder / name / f"{i}.wav", samples, RATE)
    return str(folder)


def write_texts(folder: pathlib.Path) -> str:
    rng = random(3)
    for label, word in (("good", "fine"), ("bad", "poor")):
        (folder / label).mkdir(exist_ok=True)
        for i in range(20):
            words = [*rng.choice(WORDS.split(), 1 + i % 5), word]
            (folder / label / f"{i}.txt").write_text(" ".join(rng.permutation(words)) + "\n")
    return str(folder)


def write_text(folder: pathlib.Path) -> str:
    (folder / "words.txt").write_text(WORDS * 20)
    return str(folder / "words.txt")


def write_table(folder: pathlib.Path) -> str:
    steps = np.arange(300)
    rows = zip(steps, 10 + 3 * np.sin(steps / 5), 100 * np.cos(steps / 7))
    (folder / "table.csv").write_text("warm,wet\n" + "".join(f"{a:.5f},{b:.5f}\n" for _, a, b in rows))
    return str(folder / "table.csv")


def write_rolls(folder: pathlib.Path) -> str:
    rng, arrays = random(4), {}
    for split in ("train", "validation", "test"):
        arrays[split] = (rng.random((10, 9, 5)) < 0.3).astype(np.uint8)
        arrays[f"{split}_lengths"] = rng.integers(3, 10, 10)
    np.savez(folder / "rolls.npz", **arrays)
    return str(folder / "rolls.npz")


def write_recordings(folder: pathlib.Path) -> str:
    """Arrays (channels, time) of different lengths, and a mapping that also has a class without steps."""
    rng = random(5)
    for name in ("features", "groundTruth"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "mapping.txt").write_text("0 rest\n1 cut\n2 mix\n3 never\n")
    for i in range(24):
        labels = np.repeat(rng.permutation([0, 1, 2, 0, 1]), rng.integers(2, 6, 5))
        np.save(folder / "features" / f"video-{i}.npy", (np.eye(4)[labels].T + 0.3 * rng.normal(size=(4, len(labels)))).astype(np.float32))
        (folder / "groundTruth" / f"video-{i}.txt").write_text("".join(f"{('rest', 'cut', 'mix')[label]}\n" for label in labels))
    return str(folder)


def write_tagged(folder: pathlib.Path) -> str:
    """Sentences in which what follows a "the" is a span of one to three words."""
    rng = random(6)
    for split, count in (("train", 40), ("dev", 10), ("test", 12)):
        lines = []
        for _ in range(count):
            for word in rng.choice(["a", "ox", "Sees", "the"], rng.integers(1, 5)):
                lines.append(f"{word}\tO")
                if word == "the":
                    lines += [f"{rng.choice(['Rain', 'BRCA2', 'colon-x'])}\t{'BI'[i > 0]}-Thing" for i in range(rng.integers(1, 4))]
            lines.append("")
        (folder / f"{split}.tsv").write_text("\n".join(["-DOCSTART-\tO", "", *lines]))
    (folder / "new.txt").write_text("a the Rain, the\n\nSees BRCA2 the colon-x\n")
    (folder / "other.txt").write_text("the Rain\n")
    return str(folder)


def nothing(folder: pathlib.Path) -> str:
    return ""


TCN = dict(kernel_size=2, features=(6, 6), dropout=0.0)
CNN = dict(features=(4, 6), dilations=(1, 2), pools=(2, 1), norm="group", dropout=0.0)
CASES = {
    "images": Case(
        "classification",
        "folder",
        write_images,
        ("dilated_cnn", CNN),
        {"data.image_size": 10, "augment.crop_padding": 1, "augment.flip": True},
        ("dark/0.png", "light/3.png"),
        2,
        wrong=("words.txt", "{0} cannot be read as an image"),
    ),
    "masks": Case(
        "segmentation",
        "folder",
        write_masks,
        ("dilated_fcn", dict(features=(4, 6), strides=(1, 1), dilations=(1, 2), norm="group", dropout=0.0)),
        {"augment.flip": True, "augment.scale": 0.2, "augment.rotate": 10.0, "segmentation.loss": "cross_entropy+dice"},
        ("images/0.png", "images/1.png"),
        2,
        wrong=("nowhere.png", "{0} does not exist"),
    ),
    "boxes": Case(
        "detection",
        "voc_xml",
        write_boxes,
        (
            "separable_detector",
            dict(stem_features=6, stage_features=(8,), blocks=(1,), features=8, dilations=(1, 2), head_blocks=1, norm="group"),
        ),
        {"data.image_shape": (32, 40), "augment.flip": True, "augment.scale": 0.2, "detection.max_detections": 5},
        ("JPEGImages/0.png", "JPEGImages/1.png"),
        2,
        wrong=("nowhere.png", "{0} does not exist"),
    ),
    "photographs": Case(
        "restoration",
        "folder",
        write_photographs,
        ("ircnn", dict(features=4, dilations=(1, 2, 1))),
        {"restoration.crop": 16, "restoration.blind": (5.0, 40.0), "augment.flip": True, "augment.turn": True},
        ("0.png", "1.png"),
        2,
        wrong=("words.txt", "{0} cannot be read as an image"),
    ),
    "volumes": Case(
        "segmentation",
        "volumes",
        write_volumes,
        ("meshnet", dict(features=4, dilations=(1, 2), norm="group")),
        {
            "augment.crop": (6, 6, 6),
            "augment.flip_axes": (1,),
            "augment.rotate": 10.0,
            "augment.scale": 0.2,
            "augment.noise": 0.1,
            "segmentation.loss": "cross_entropy+dice",
        },
        ("images/00.nii.gz", "images/01.nii.gz"),
        2,
        wrong=("nowhere.nii.gz", "{0} does not exist"),
    ),
    "series": Case(
        "sequence_classification",
        "ucr:toy",
        write_series,
        ("tcn", TCN),
        {"sequence.pool": "mean"},
        ("toy_TEST.ts",),
        24,
        wrong=("nowhere.ts", "{0} does not exist"),
    ),
    "sounds": Case(
        "sequence_classification",
        "wav",
        write_sounds,
        ("tcn", TCN),
        {"sequence.pool": "mean", "sequence.bands": 8},
        ("high/2.wav", "low/5.wav"),
        2,
        streamed=lambda folder: (folder / "data" / "high" / "2.wav").read_bytes(),
        wrong=("words.txt", "{0} cannot be read as sound"),
    ),
    "texts": Case(
        "sequence_classification",
        "text",
        write_texts,
        ("gated_dilated_cnn", dict(features=8, dilations=(1, 2), embedding_features=4, dropout=0.0)),
        {},
        ("good/0.txt", "bad/1.txt"),
        2,
        streamed=lambda folder: (folder / "data" / "good" / "0.txt").read_bytes(),
        wrong=("nowhere.txt", "{0} does not exist"),
    ),
    "pixels": Case(
        "sequence_classification",
        "folder",
        write_images,
        ("tcn", TCN),
        {"data.image_size": 6, "sequence.permute": True, "augment.flip": True},
        ("dark/0.png", "light/3.png"),
        2,
        wrong=("words.txt", "{0} cannot be read as an image"),
    ),
    "recordings": Case(
        "sequence_labelling",
        "recordings",
        write_recordings,
        ("ms_tcn", dict(stages=2, features=6, dilations=(1, 2), dropout=0.0, causal=True)),
        {"sequence.background": "rest"},
        ("features/video-0.npy", "features/video-3.npy"),
        2,
        streamed=lambda folder: b"1,0,0,0.2\n0 1 0 0\n\n0,1,0,0\n",
        wrong=("words.txt", "{0} is not a file of features"),
    ),
    "tags": Case(
        "sequence_labelling",
        "conll",
        write_tagged,
        ("id_cnn", dict(features=6, dilations=(1, 2), iterations=2, embedding_features=4, character_features=4, crf=True, dropout=0.0)),
        {"sequence.characters": 5, "sequence.crop": 6},
        ("new.txt",),
        2,
        streamed=lambda folder: b"a the Rain\n\nox\n",
        wrong=("nowhere.txt", "{0} does not exist"),
    ),
    "table": Case(
        "sequence_prediction",
        "csv",
        write_table,
        ("tcn", TCN),
        {"sequence.length": 32, "sequence.context": 8, "sequence.test": 0.2},
        ("table.csv",),
        1 + 7,
        streamed=lambda folder: (folder / "data" / "table.csv").read_bytes(),
        wrong=("words.txt", "{0}"),
    ),
    "rolls": Case("sequence_prediction", "piano", write_rolls, ("tcn", TCN), {"sequence.loss": "binary"}),
    "codes": Case(
        "sequence_prediction",
        "copy_memory",
        nothing,
        ("tcn", dict(TCN, embedding_features=4)),
        {"sequence.length": 5, "sequence.examples": 40, "sequence.loss": "categorical"},
    ),
    "sums": Case(
        "sequence_prediction", "adding", nothing, ("tcn", TCN), {"sequence.length": 8, "sequence.examples": 40, "sequence.loss": "mse"}
    ),
    "text": Case(
        "language_model",
        "text",
        write_text,
        ("tcn", dict(TCN, embedding_features=4)),
        {"sequence.length": 24, "sequence.context": 8, "sequence.sample": 9, "sequence.test": 0.1},
        ("the rain", "in"),
        2,
        streamed=lambda folder: b"the rain\n",
        wrong=("", "the text is empty"),
    ),
    "waves": Case(
        "waveform",
        "wav",
        write_sounds,
        ("wavenet", dict(dilations=(1, 2), features=4, skip_features=4)),
        {"sequence.length": 400, "sequence.context": 3, "sequence.sample": 20},
        ("high/2.wav",),
        1,
        streamed=lambda folder: (folder / "data" / "high" / "2.wav").read_bytes(),
        wrong=("words.txt", "{0} cannot be read as sound"),
    ),
    "mixtures": Case(
        "separation",
        "mixtures",
        write_mixtures,
        (
            "conv_tasnet",
            dict(features=12, bottleneck_features=6, hidden_features=8, skip_features=6, blocks=2, repeats=1, causal=True, kernel_size=24),
        ),
        {"sequence.length": 400, "sequence.test": 0.2},
        ("mix/2.wav", "mix/3.wav"),
        2,
        streamed=lambda folder: (folder / "data" / "mix" / "2.wav").read_bytes(),
        wrong=("words.txt", "{0} cannot be read as sound"),
    ),
}
