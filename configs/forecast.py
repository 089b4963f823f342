"""Forecast a table: a .csv file, a row for each step; each row is told from those before.

python -m train.main --config configs/forecast.py --config.data.dir=FILE.csv
python -m train.predict --workdir runs/forecast FILE.csv --steps 24
Standardised by the training rows; the last twentieth is the test split. "mse" is in units of the training rows' variance.
On S06R02E0.csv of the package aeon (ten columns of who walks and freezes, 7,040 rows): mse 0.709, 0.717, 0.721 (seeds 0, 1, 2; mean
0.716 +- 0.006), 50 to 148 s on 2 CPU cores beside other programs; each row again as the next has 0.993.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("forecast")
    config.task = "sequence_prediction"
    config.data.name = "csv"
    config.data.dir = "table.csv"
    config.sequence.length = 128
    config.sequence.context = 64
    config.sequence.stride = 8
    config.sequence.loss = "mse"
    config.model = ConfigDict(model_config("tcn", kernel_size=3, features=(32,) * 5, dropout=0.1))
    config.batch_size = 16
    config.total_epochs = 50.0
    config.optim.lr = 2e-3
    config.optim.clip_norm = 1.0
    if variant == "smoke":
        config.name = "forecast_smoke"
        config.sequence.length = 16
        config.sequence.context = 4
        config.sequence.stride = 4
        config.model.features = (8, 8)
        config.total_epochs = 1.0
    return config
