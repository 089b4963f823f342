"""The digits 0 to 4 of the embedded MNIST digits, from which configs/finetune_digits.py starts.

    python -m train.main --config configs/pretrain_digits.py

Measured: 99.6 % test accuracy on the five classes (seed 0); 36 s on 2 CPU cores.
"""

from ml_collections import ConfigDict

from configs import digits
from train.config import check_variant


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = digits.get_config(variant)
    config.name = "pretrain_digits" if variant == "full" else "pretrain_digits_smoke"
    config.data.classes = (0, 1, 2, 3, 4)
    return config
