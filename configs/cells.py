"""Cells and nuclei in a scratch assay: ten microscopy frames that the package ndev-sampledata ships, split by columns.

    pip install --no-deps ndev-sampledata==0.0.3 && python -m train.main --config configs/cells.py

Measured: 0.632 mean IoU on the test columns (seed 0); 117 s on 2 busy CPU cores.
Measured, :smoke: 0.514 mean IoU after 50 steps (seed 0); 55 s on 2 busy CPU cores, compilation included.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("cells", task="segmentation")
    config.data.name = "cells"
    config.model = ConfigDict(
        model_config(
            "dilated_fcn",
            features=(16, 32, 64, 64, 64, 64, 64),
            strides=(2, 1, 2, 1, 1, 1, 1),
            dilations=(1, 1, 1, 2, 4, 8, 1),
            separable=True,
            dropout=0.1,
        )
    )
    config.batch_size = 8
    config.total_epochs = 200.0
    config.eval_every_epochs = 10.0
    config.augment.crop = (128, 96)
    config.augment.scale = 0.3
    config.augment.flip = True
    config.augment.colour = 0.2
    config.segmentation.loss = "cross_entropy+dice"
    config.optim.lr = 4e-3
    config.optim.warmup_epochs = 5.0
    config.optim.ema_decay = 0.99
    if variant == "smoke":
        config.name = "cells_smoke"
        config.total_epochs = 10.0
        config.optim.ema_decay = 0.0
        config.optim.warmup_epochs = 1.0
    return config
