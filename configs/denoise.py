"""Grey photographs without their noise: IRCNN at a standard deviation of 25, trained on the 400 images that papers train on.

    python -m train.main --config configs/denoise.py --config.data.dir=Train400 --config.data.test_dir=BSD68
    python -m train.evaluate --workdir runs/denoise --test_dir Set12
    python -m train.main --config configs/denoise.py:no_dilation --config.data.dir=Train400 --config.data.test_dir=BSD68
    python -m train.main --config configs/denoise.py:smoke          two photographs of scikit-learn (CC BY 2.0), split by columns

Measured: 28.67 dB on BSD68, 29.60 dB on Set12 (seed 0; the paper has 29.15 on BSD68), 27.63 dB on the 20 validation images;
2829 s on 2 shared CPU cores, 2217 s of processor time, with oneDNN. :no_dilation is not measured.
Measured, :smoke: 28.93 dB test PSNR from 21.08 (seed 0); 530 s on 2 very busy CPU cores, 40 s of processor time.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config

DILATIONS = (1, 2, 3, 4, 3, 2, 1)


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "no_dilation", "smoke"))
    config = default_config("denoise" if variant == "full" else f"denoise_{variant}", task="restoration")
    config.data.name = "folder"
    config.data.validation = 0.05
    config.model = ConfigDict(model_config("ircnn", dilations=(1,) * len(DILATIONS) if variant == "no_dilation" else DILATIONS))
    config.restoration.sigma = 25.0
    config.restoration.channels = 1
    config.restoration.crop = 40
    config.restoration.window = 180
    config.batch_size = 16
    config.total_epochs = 120.0
    config.eval_every_epochs = 20.0
    config.augment.flip = True
    config.augment.turn = True
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.0
    config.optim.warmup_epochs = 2.0
    config.optim.ema_decay = 0.999
    if variant == "smoke":
        config.data.name = "photographs"
        config.model = ConfigDict(model_config("ircnn", features=16))
        config.restoration.window = 0
        config.batch_size = 8
        config.total_epochs = 60.0
        config.eval_every_epochs = 20.0
        config.optim.lr = 4e-3
        config.optim.warmup_epochs = 2.0
        config.optim.ema_decay = 0.0
    return config
