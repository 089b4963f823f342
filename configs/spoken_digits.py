"""Spoken words from log-mel frames, by a separable network: a folder of .wav files, one channel each, in folders of their labels.

python -m train.main --config configs/spoken_digits.py --config.data.dir=FOLDER
FOLDER holds zero/, one/, ... or train/ and test/ with those; of the former every fifth file is for the test. All files have one rate.
Test accuracy 92.7, 88.9 and 90.4 % (seeds 0, 1, 2; mean 90.7 +- 1.9 %), 62 to 75 s on 2 CPU cores while other programs ran, on the 1,260
and 560 digits of `python -m benchmarks.speech digits FOLDER`: a machine's speech, tested in voices not heard in training. No package ships
recordings of people; on those it is not measured.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("spoken_digits")
    config.task = "sequence_classification"
    config.data.name = "wav"
    config.data.dir = "spoken_digits"
    config.sequence.pool = "mean"
    config.model = ConfigDict(model_config("separable_tcn"))
    config.batch_size = 32
    config.total_epochs = 40.0
    config.optim.lr = 3e-3
    config.optim.warmup_epochs = 2.0
    if variant == "smoke":
        config.name = "spoken_digits_smoke"
        config.total_epochs = 1.0
    return config
