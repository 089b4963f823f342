"""Your own texts: a folder of .txt files for each class, or one text file to be continued. Not measured.

    python -m train.main --config configs/my_text.py --data FOLDER      classes of texts
    python -m train.main --config configs/my_text.py --data FILE.txt    a language model
    python -m train.predict --workdir runs/my_text new.txt              the class of a text; or a prompt, which is continued

Batch and epochs follow from the files. A language model also reads a folder with train.txt and test.txt.
"""

import pathlib

from ml_collections import ConfigDict

from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.files import only_file
from train.data.splits import split_paths


def get_config(data: str = "") -> ConfigDict:
    path = user_path(data)
    classes = [one for one in path.glob("[!.]*") if one.is_dir()]
    if data and (path.is_file() or split_paths(path, suffix=".txt") or not classes):
        return _continued(only_file(path, (".txt",)))
    config = default_config("my_text", task="sequence_classification")
    config.data.name = "text"
    config.sequence.units = "bytes"
    config.sequence.length = 1024
    config.model = ConfigDict(model_config("gated_dilated_cnn", dropout=0.2, dilations=(1, 2, 4, 8, 16, 32)))
    config.optim.weight_decay = 1e-2
    if data:
        config.data.dir = data
        own_data.scale_to_labelled(config, path, (".txt",))
    return config


def _continued(path: pathlib.Path) -> ConfigDict:
    """A language model of bytes, which knows every character."""
    config = default_config("my_text", task="language_model")
    config.data.name = "text"
    config.data.dir = str(path)
    config.sequence.units = "bytes"
    files = [path] if path.is_file() else list(split_paths(path, suffix=".txt").values())
    size = sum(file.stat().st_size for file in files)
    length = max(8, min(256, size // 16))
    config.sequence.length, config.sequence.context = length, length // 4
    config.sequence.temperature = 0.7
    config.model = ConfigDict(model_config("tcn", kernel_size=3, features=(128,) * 5, embedding_features=64, dropout=0.1))
    config.optim.lr = 3e-3
    config.optim.clip_norm = 0.5
    own_data.scale_to(config, max(1, round(0.85 * size) // (length - length // 4)), largest_batch=16)
    config.data.validation = 0.1  # of the text, before the test split
    return config
