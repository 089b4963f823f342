"""A WaveNet of raw sound: a folder of sound files; the report holds drawn samples as .wav files. Not measured.

    python -m train.main --config configs/waveform.py --config.data.dir=FOLDER

No package ships such recordings.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("waveform", task="waveform")
    config.data.name = "wav"
    config.data.dir = "sounds"
    config.sequence.length = 8000
    config.sequence.context = 1023
    config.sequence.sample = 16000
    config.model = ConfigDict(model_config("wavenet", dilations=tuple(2**i for i in range(10)), features=32, skip_features=64))
    config.batch_size = 8
    config.total_epochs = 20.0
    config.optim.lr = 1e-3
    config.optim.clip_norm = 1.0
    if variant == "smoke":
        config.name = "waveform_smoke"
        config.sequence.length = 400
        config.sequence.context = 3
        config.sequence.sample = 100
        config.model.dilations = (1, 2)
        config.model.features = 8
        config.total_epochs = 1.0
    return config
