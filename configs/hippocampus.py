"""Anterior and posterior hippocampus in MR volumes of 1 mm: 260 volumes of the Medical Segmentation Decathlon, task 4 (CC BY-SA 4.0).

    python -m train.main --config configs/hippocampus.py --config.data.dir=FOLDER

FOLDER holds images/ and labels/ with NIfTI files of the same names; 60 volumes, the same whatever the seed, are the test split. A MeshNet
of 16 channels is trained on patches. :no_dilation has the same parameters and dilations of 1; :smoke needs no data: it learns made-up
ellipsoids, with fewer channels. Install oneDNN (docs/speed.md): 3-D convolutions are then several times faster on a CPU.

Measured: 0.887 mean Dice on the 60 test volumes (anterior 0.893, posterior 0.881; seed 0), 0.889 on the validation split; 835 s on 2 CPU
cores with AVX-512, with oneDNN.
Measured, :no_dilation: 0.881 mean Dice (seed 0).
Measured, :smoke: 0.846 mean Dice on made-up volumes after 144 steps (seed 0); 294 s on 2 very busy CPU cores.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "no_dilation", "smoke"))
    config = default_config("hippocampus", task="segmentation")
    config.data.name = "volumes"
    config.data.dir = "hippocampus"
    config.data.class_names = ("background", "anterior", "posterior")
    config.data.test = 60 / 260
    config.data.validation = 0.1
    dilations = (1, 1, 1, 2, 4, 8, 1)
    config.model = ConfigDict(model_config("meshnet", features=16, dilations=dilations))
    config.batch_size = 2
    config.total_epochs = 36.0
    config.eval_every_epochs = 4.0
    config.augment.crop = (32, 48, 32)
    config.augment.rotate = 10.0
    config.augment.scale = 0.1
    config.augment.colour = 0.1
    config.augment.noise = 0.02
    config.segmentation.loss = "cross_entropy+dice"
    config.optim.lr = 1e-2
    config.optim.warmup_epochs = 1.0
    config.optim.ema_decay = 0.99
    if variant == "no_dilation":
        config.name = "hippocampus_no_dilation"
        config.model.dilations = (1,) * len(dilations)
    if variant == "smoke":
        config.name = "hippocampus_smoke"
        config.data.update(name="ellipsoids", dir="", class_names=(), test=0.2)
        config.model.features = 8
        config.augment.crop = (16, 16, 16)
        config.total_epochs = 12.0
        config.optim.ema_decay = 0.0
    return config
