"""Classes of texts, by gated dilated convolutions over their bytes: .txt files in folders named after their classes. Not measured.

    python -m train.main --config configs/labelled_text.py --config.data.dir=FOLDER

FOLDER holds one folder per class, or train/ and test/ with such folders, as the IMDB reviews do; without test/, every fifth file is held
out for the test. The first config.sequence.length bytes of longer texts are read.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("labelled_text", task="sequence_classification")
    config.data.name = "text"
    config.data.dir = "labelled_text"
    config.sequence.units = "bytes"
    config.sequence.length = 1024
    config.model = ConfigDict(model_config("gated_dilated_cnn", dropout=0.2, dilations=(1, 2, 4, 8, 16, 32)))
    config.batch_size = 32
    config.total_epochs = 10.0
    config.optim.lr = 1e-3
    config.optim.weight_decay = 1e-2
    if variant == "smoke":
        config.name = "labelled_text_smoke"
        config.sequence.length = 64
        config.model.features = 8
        config.total_epochs = 1.0
    return config
