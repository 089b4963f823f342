"""Your own sounds: a folder of recordings for each label, or train/ and test/ with such folders. Not measured.

    python -m train.main --config configs/my_sounds.py --data FOLDER
    python -m train.predict --workdir runs/my_sounds new.wav

Batch and epochs follow from the number of files. The network is causal, so that it also listens with `train.predict --stream`.
"""

from ml_collections import ConfigDict

from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.sound import SUFFIXES


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_sounds", task="sequence_classification")
    config.data.name = "wav"
    config.sequence.pool = "mean"
    config.model = ConfigDict(model_config("separable_tcn", dropout=0.1))
    config.optim.lr = 3e-3
    if data:
        config.data.dir = data
        own_data.scale_to_labelled(config, user_path(data), SUFFIXES)
    return config
