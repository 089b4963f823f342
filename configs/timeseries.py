"""Time series of the UCR archive, which the package aeon ships: `:OSULeaf`, `:ACSF1`, `:GunPoint`.

    pip install --no-deps aeon==1.6.0
    python -m train.main --config configs/timeseries.py:OSULeaf

Measured, :OSULeaf: 92.7 ± 0.2 % test accuracy (seeds 0, 1, 2); 132 to 216 s on 2 busy CPU cores.
Measured, :ACSF1: 88.3 ± 1.2 % test accuracy (seeds 0, 1, 2); 147 to 394 s on 2 busy CPU cores.
Measured, :GunPoint: 99.8 ± 0.4 % test accuracy (seeds 0, 1, 2); 18 to 47 s on 2 busy CPU cores.

InceptionTime, an ensemble of five networks, reaches 92, 91 and 100 %. The network was chosen on a quarter of the training series of
OSULeaf; dilations up to 64 were not better on a quarter of those of ACSF1. Other sets of the archive: --config.data.name=ucr:NAME
--config.data.dir=FOLDER, which holds NAME_TRAIN.ts and NAME_TEST.ts.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "OSULeaf") -> ConfigDict:
    check_variant(__file__, variant, ("full", "OSULeaf", "ACSF1", "GunPoint", "smoke"))
    name = "OSULeaf" if variant in ("full", "smoke") else variant
    config = default_config("timeseries" if variant == "full" else f"timeseries_{variant}", task="sequence_classification")
    config.data.name = f"ucr:{name}"
    config.data.validation = 0.0
    config.sequence.pool = "mean"
    config.model = ConfigDict(
        model_config("separable_tcn", features=96, kernel_size=9, dilations=(1, 2, 4, 8, 16), causal=False, dropout=0.1)
    )
    config.batch_size = 16
    config.total_epochs = 120.0
    config.optim.lr = 2e-3
    config.optim.warmup_epochs = 10.0
    config.optim.weight_decay = 1e-3
    config.optim.ema_decay = 0.99
    if variant == "smoke":
        config.total_epochs = 2.0
        config.model.features = 8
    return config
