"""Your own recordings with a class for every step, such as videos: folders features/ and labels/ with files of equal names. Not measured.

    python -m train.main --config configs/my_recordings.py --data FOLDER
    python -m train.predict --workdir runs/my_recordings new.npy

Features are .npy, .npz or .csv files (time, channels), labels .txt files with the class of one step on each line. Batch, epochs, layers
and the part of a recording that a training step sees follow from the files. A class that the scores of segments leave out is named by
--config.sequence.background=NAME.
"""

import numpy as np
from ml_collections import ConfigDict

from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.recordings import count_steps
from train.data.splits import divided


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_recordings", task="sequence_labelling")
    config.data.name = "recordings"
    config.model = ConfigDict(model_config("ms_tcn"))
    config.optim.lr = 2e-3
    config.optim.ema_decay = 0.98
    if data:
        config.data.dir = data
        folder = user_path(data)
        parts = divided(folder)
        steps = count_steps(parts["train"] if parts else folder)
        config.sequence.crop = max(8, min(512, int(np.median(steps))))
        # As many layers as a part of a recording has room for.
        config.model.dilations = tuple(2**i for i in range(config.sequence.crop.bit_length() - 2))
        own_data.scale_to_files(config, len(steps), parts, largest_batch=4)
    return config
