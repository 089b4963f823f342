"""Street scenes: CamVid at 240x180, 11 classes, 367/101/233 images, with a small dilated network pretrained on CIFAR-10.

    python -m train.main --config configs/pretrain_camvid.py && python -m train.main --config configs/camvid.py
    python -m train.main --config configs/camvid.py:scratch         needs no pretraining
    python -m train.main --config configs/camvid.py:no_dilation     as the first line, with all dilations 1
    python -m train.main --config configs/camvid.py:smoke           one epoch from scratch

Measured: 0.478 ± 0.007 mean IoU on the test split at 240x180 (seeds 0, 1); 8 to 10 min on 2 busy CPU cores.
Measured, :scratch: 0.416 ± 0.005 mean IoU (seeds 0, 1); 8 to 10 min on 2 busy CPU cores.
Measured, :no_dilation: 0.474 ± 0.002 mean IoU (seeds 0, 1); 8 to 10 min on 2 busy CPU cores.
Measured, :smoke: 0.218 mean IoU (seed 0); 150 s on 2 busy CPU cores.

TFDS has no builder for this set. It is read in the layout of TFDS as `camvid` from config.data.dir or TFDS_DATA_DIR, or from a folder with
train/, validation/ and test/, each with images/ and masks/, by --config.data.name=folder --config.data.dir=FOLDER.
"""

from ml_collections import ConfigDict

from configs.pretrain_camvid import FEATURES
from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "scratch", "no_dilation", "smoke"))
    config = default_config("camvid" if variant == "full" else f"camvid_{variant}", task="segmentation")
    config.data.name = "camvid"
    dilations = (1, 1, 1, 1, 1, 2, 4, 8, 4, 1)
    config.model = ConfigDict(
        model_config(
            "dilated_fcn",
            features=FEATURES,
            strides=(2, 2, 1, 2, 1, 1, 1, 1, 1, 1),
            dilations=(1,) * len(dilations) if variant == "no_dilation" else dilations,
            separable=True,
            dropout=0.1,
        )
    )
    config.batch_size = 8
    config.total_epochs = 40.0
    config.eval_every_epochs = 5.0
    config.augment.scale = 0.5
    config.augment.flip = True
    config.augment.colour = 0.3
    config.segmentation.loss = "cross_entropy+dice"
    config.optim.lr = 3e-3
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 2.0
    config.optim.ema_decay = 0.998
    if variant in ("full", "no_dilation"):
        config.init_from = "runs/pretrain_camvid"
        config.head_reset = True
    if variant == "smoke":
        config.total_epochs = 1.0
        config.optim.warmup_epochs = 0.2
        config.optim.ema_decay = 0.0
    return config
