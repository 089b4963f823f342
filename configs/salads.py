"""Actions of a person who makes a salad, frame by frame, from per-frame scores of classifiers (Farha & Gall 2019, arXiv:1903.01945).

    python -m train.main --config configs/salads.py --config.data.dir=FOLDER --config.sequence.split=1 --workdir runs/salads-1

FOLDER holds five .mat files, one for each split of 50 Salads, such as mid_video_SVM of the TCN paper (Lea et al. 2017, arXiv:1611.05267);
config.sequence.split chooses the one that is tested on; the score over the dataset is the mean of five runs, with 1 to 5. `causal` sees no
later frame, `no_dilation` has the same parameters with dilations of 1. `smoke` is a short run on recordings that are made up.

Measured: 0.626 ± 0.004 edit score, 0.673 ± 0.006 F1@10 over the five splits (seeds 0, 1, 2); 105 s for one split on 2 CPU cores.
Measured, :causal: 0.465 edit score, 0.501 F1@10 (seed 0).
Measured, :no_dilation: 0.468 edit score, 0.506 F1@10 (seed 0).

The features of each file are the scores of an SVM for videos that it had not seen, so those of the training videos come from SVMs that had
seen the test videos. A stage has seven layers, not the ten of the paper: an output sees 1,017 steps, more than any of these videos has.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "causal", "no_dilation", "smoke"))
    config = default_config("salads", task="sequence_labelling")
    config.data.name = "mat"
    config.data.dir = "mid_video_SVM"
    config.data.validation = 0.0
    config.sequence.background = "0"
    layers = dict(causal=variant == "causal", dilations=(1,) * 7 if variant == "no_dilation" else tuple(2**i for i in range(7)))
    config.model = ConfigDict(model_config("ms_tcn", **layers))
    config.batch_size = 4
    config.total_epochs = 75.0
    config.eval_every_epochs = 75.0
    config.optim.lr = 1e-3
    config.optim.ema_decay = 0.98
    if variant == "smoke":
        config.name = "salads_smoke"
        config.data.name = "actions"
        config.data.dir = ""
        config.sequence.background = "background"
        config.sequence.length = 64
        config.model.update(stages=2, features=16, dilations=(1, 2, 4, 8))
        config.total_epochs = 5.0
        config.eval_every_epochs = 5.0
        config.sequence.crop = 32
    return config
