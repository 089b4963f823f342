"""Pretrain, fine-tune, evaluate and predict with dilax: the programs behind `python -m train.main`."""
