"""Names of diseases in abstracts of medical papers, by iterated dilated convolutions and a conditional random field.

    python -m train.main --config configs/disease_names.py --config.data.dir=FOLDER

FOLDER holds train.tsv, devel.tsv and test.tsv of the NCBI disease corpus (in the public domain): a word, a tab and its tag on each line.
`no_dilation` has the same parameters with dilations of 1.

Measured: 0.805 ± 0.007 F1 of spans on the test split (0.810, 0.800: seeds 0, 1), 0.817 ± 0.001 on devel.tsv, which chose the epoch; 15 to
16 minutes on one CPU core.
Measured, `no_dilation`: 0.818 F1 of spans (0.829 on devel.tsv; seed 0), 13 minutes on one shared CPU core: dilation does not help here.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "no_dilation", "smoke"))
    config = default_config("disease_names", task="sequence_labelling")
    config.data.name = "conll"
    config.data.dir = "ncbi_disease"
    config.sequence.crop = 48
    config.sequence.word_dropout = 0.3
    layers = dict(features=192, dilations=(1, 1, 1, 1) if variant == "no_dilation" else (1, 2, 4, 1), iterations=2)
    config.model = ConfigDict(model_config("id_cnn", **layers, crf=True, character_features=100, dropout=0.5))
    config.batch_size = 32
    config.total_epochs = 16.0
    config.optim.lr = 3e-3
    config.optim.ema_decay = 0.99
    config.optim.clip_norm = 5.0
    if variant == "smoke":
        config.name = "disease_names_smoke"
        config.model.update(features=16, embedding_features=8, character_features=8)
        config.total_epochs = 1.0
    return config
