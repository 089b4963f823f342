"""Your own table: a .csv file with a row for each step, of which the next rows are forecast. Not measured.

    python -m train.main --config configs/my_table.py --data FILE.csv
    python -m train.predict --workdir runs/my_table FILE.csv --steps 24

The length of the windows, batch and epochs follow from the number of rows. Missing cells are refused; --config.data.missing=interpolate
fills them.
"""

from ml_collections import ConfigDict

from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.files import only_file


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_table", task="sequence_prediction")
    config.data.name = "csv"
    config.sequence.length, config.sequence.context, config.sequence.stride = 128, 64, 16
    config.sequence.test = 0.1
    config.model = ConfigDict(model_config("tcn", kernel_size=3, features=(32,) * 5, dropout=0.1))
    config.optim.lr = 2e-3
    config.optim.clip_norm = 1.0
    if data:
        file = only_file(user_path(data), (".csv", ".tsv", ".gz"))
        rows = round(0.8 * own_data.count_rows(file))  # a tenth each is for validation and test
        length = max(4, min(128, rows // 8))
        config.data.dir = str(file)
        config.sequence.length, config.sequence.context, config.sequence.stride = length, length // 2, max(1, length // 8)
        own_data.scale_to(config, max(1, (rows - length) // config.sequence.stride))
        config.data.validation = 0.1  # of the rows, before the test split
    return config
