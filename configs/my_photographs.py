"""Your own photographs, which have to be clean: a folder of them, or train/ and test/. Not measured.

    python -m train.main --config configs/my_photographs.py --data FOLDER
    python -m train.predict --workdir runs/my_photographs noisy.jpg

It learns to remove noise of any deviation up to 50, in a network for processors. Another degradation is chosen by a flag, such as
--config.restoration.blind="()" --config.restoration.degradation=jpeg or =super_resolution. Batch and epochs follow from the files.
"""

from ml_collections import ConfigDict

from train import own_data
from train.config import default_config, model_config
from train.tasks.restoration import Restoration


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_photographs", task="restoration")
    config.data.name = "folder"
    config.model = ConfigDict(model_config("separable_ircnn", norm="batch"))
    config.restoration.blind = (0.0, 50.0)
    config.restoration.crop = 40
    config.augment.flip = True
    config.augment.turn = True
    config.optim.lr = 2e-3
    config.optim.weight_decay = 0.0
    config.optim.ema_decay = 0.99
    if data:
        config.data.dir = data
        images, windows = Restoration.count(config)
        own_data.scale_to(config, windows, fewest_steps=4000, largest_batch=16)
        config.data.validation = 0.1 if images >= 10 else 0.0  # whole images are held out
    return config
