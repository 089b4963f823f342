"""Datasets: sources of records, their splits, and batches of them."""

from train.data.batches import eval_batches, train_batches
from train.data.source import Source, Table
from train.data.splits import Splits

__all__ = ["Source", "Splits", "Table", "eval_batches", "train_batches"]
