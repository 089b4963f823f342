"""Polyphonic music: predict the keys of the next step of a piano roll (Bai, Kolter & Koltun 2018, arXiv:1803.01271, section 5.3).

    python -m train.main --config configs/piano.py --config.data.dir=JSB_Chorales.mat

8.19, 8.22 and 8.22 nats per step on the test split of the JSB chorales (seeds 0, 1, 2), in 259 to 301 s each, shared, with oneDNN.

The file holds the JSB chorales in three splits (229, 76 and 77 sequences): the .mat file of the authors' code, or an .npz file with train,
validation and test (n, time, 88) and train_lengths, validation_lengths and test_lengths. The paper reports 8.10 nats per step ("nll").
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("piano", task="sequence_prediction")
    config.data.name = "piano"
    config.data.dir = "JSB_Chorales.mat"
    config.sequence.loss = "binary"
    config.model = ConfigDict(model_config("tcn", kernel_size=3, features=(150,) * 2, dropout=0.5))
    config.batch_size = 1  # as in the paper: batches of 8 take an eighth of the steps, and gave 8.42 nats per step
    config.total_epochs = 100.0
    config.optim.lr = 1e-3
    config.optim.clip_norm = 0.4
    config.optim.ema_decay = 0.999
    if variant == "smoke":
        config.name = "piano_smoke"
        config.model.features = (8, 8)
        config.total_epochs = 1.0
    return config
