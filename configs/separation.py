"""Conv-TasNet (Luo & Mesgarani 2019, arXiv:1809.07454): separate the speakers of a mixture. For accelerators; :cpu is small.

    python -m train.main --config configs/separation.py --config.data.dir=FOLDER

Measured, :cpu: 6.0 dB SI-SDR improvement in new voices, 8.6 dB in voices heard (seed 0); 33 min on 2 busy CPU cores.

FOLDER holds mix/, s1/ and s2/ with sound files of the same names, or train/, validation/ and test/ with such folders, as WSJ0-2mix and
Libri2Mix are laid out. The paper reports 15.3 dB SI-SDR improvement on WSJ0-2mix; no package ships such recordings, so the large network
is not measured. The measurement is on the 1,000 and 100 mixtures that `python -m benchmarks.speech mixtures FOLDER` synthesises.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "cpu", "smoke"))
    config = default_config("separation" if variant == "full" else f"separation_{variant}", task="separation")
    config.data.name = "mixtures"
    config.data.dir = "mixtures"
    config.sequence.length = 32000  # 4 s at the 8 kHz of the paper
    config.model = ConfigDict(model_config("conv_tasnet"))
    config.batch_size = 8
    config.total_epochs = 100.0
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 5.0
    if variant == "cpu":
        config.sequence.length = 8000
        config.model.update(features=128, bottleneck_features=64, hidden_features=128, skip_features=64, blocks=6, repeats=2)
        config.total_epochs = 20.0
    if variant == "smoke":
        config.sequence.length = 400
        config.model.update(features=16, bottleneck_features=8, hidden_features=8, skip_features=8, blocks=2, repeats=1)
        config.total_epochs = 1.0
    return config
