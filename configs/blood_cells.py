"""Blood cells to detect: 364 images, 4,886 boxes of red and white cells and platelets (BCCD, MIT licence), in the layout of Pascal VOC.

    python -m train.main --config configs/blood_cells.py --config.data.dir=BCCD
    python -m train.main --config configs/blood_cells.py:no_dilation --config.data.dir=BCCD

Measured: 0.852 mAP at an overlap of 0.5, 0.508 COCO's mAP on the test split (seed 0); 13 minutes on 2 shared CPU cores.
Measured, :no_dilation: 0.886 and 0.547 (seed 0), 9 minutes on one shared core: dilation does not help here.

BCCD is the folder with JPEGImages/, Annotations/ and ImageSets/. :no_dilation has dilations of 1 throughout, and the same parameters.
:smoke needs no data: it learns shapes that are made up.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "no_dilation", "smoke"))
    config = default_config("blood_cells", task="detection")
    config.data.name = "voc_xml"
    config.data.dir = "BCCD"
    config.data.image_shape = (240, 320)
    config.model = ConfigDict(model_config("separable_detector"))
    config.batch_size = 4
    config.total_epochs = 40.0
    config.eval_every_epochs = 4.0
    config.augment.flip = True
    config.augment.scale = 0.3
    config.augment.colour = 0.2
    config.optim.lr = 2e-3
    config.optim.warmup_epochs = 2.0
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.99
    if variant == "no_dilation":
        config.name = "blood_cells_no_dilation"
        config.model.dilations = (1,) * len(config.model.dilations)
    if variant == "smoke":
        config.name = "blood_cells_smoke"
        config.data.name = "shapes"
        config.data.dir = ""
        config.data.image_shape = ()
        config.batch_size = 8
        config.total_epochs = 4.0
        config.eval_every_epochs = 2.0
        config.model.update(stem_features=8, stage_features=(12, 24), blocks=(1, 1), features=24, dilations=(1, 2), head_blocks=1)
        config.optim.ema_decay = 0.0
        config.optim.warmup_epochs = 0.5
    return config
