"""Your own words with tags, as CoNLL files: a folder with train.tsv and test.tsv, or one file. Not measured.

    python -m train.main --config configs/my_tags.py --data FOLDER
    python -m train.predict --workdir runs/my_tags new.txt

Each line holds a word and its tag, separated by a tab or a space; a blank line ends a sentence. The batch size, the number of epochs and
the length of the part of a sentence that a training step sees follow from the files.
"""

import numpy as np
from ml_collections import ConfigDict

from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.conll import read_tagged


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_tags", task="sequence_labelling")
    config.data.name = "conll"
    config.sequence.word_dropout = 0.1
    layers = dict(features=128, dilations=(1, 2, 4, 1), iterations=2)
    config.model = ConfigDict(model_config("id_cnn", **layers, crf=True, dropout=0.4))
    config.optim.lr = 3e-3
    config.optim.ema_decay = 0.99
    config.optim.clip_norm = 5.0
    if data:
        config.data.dir = data
        parts, _ = read_tagged(user_path(data))
        # A few sentences are much longer than all others, and all are padded to the longest one.
        config.sequence.crop = max(8, round(float(np.quantile([len(one.words) for one in parts["train"]], 0.9))))
        own_data.scale_to(config, len(parts["train"]), own_validation="validation" in parts, largest_batch=64)
    return config
