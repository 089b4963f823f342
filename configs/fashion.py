"""Fashion-MNIST (through TFDS): 60,000 grey images of clothes, 28x28, ten classes. Not measured.

python -m train.main --config configs/fashion.py
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("fashion")
    config.data.name = "fashion_mnist"
    config.model = ConfigDict(
        model_config("dilated_cnn", features=(32, 64, 64, 128), dilations=(1, 2, 1, 2), pools=(2, 1, 2, 1), dropout=0.3)
    )
    config.total_epochs = 20.0
    config.augment.crop_padding = 2
    config.augment.flip = True
    config.optim.lr = 3e-3
    config.optim.ema_decay = 0.999
    if variant == "smoke":
        config.name = "fashion_smoke"
        config.total_epochs = 0.02
    return config
