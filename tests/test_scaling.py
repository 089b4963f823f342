"""Standardising: no neighbouring values become one, a constant channel has no scale, and predictions are printed to be told apart."""

import statistics

import numpy as np
import pytest
from reading import written as write
from task_cases import CASES

from dilax import DataSpec
from train.config import task_class
from train.data import scaling
from train.data.source import gather

RNG = np.random.default_rng(8)
# Columns that do not vary, or vary by rounding alone.
CONSTANT = {
    "whole": np.full(40, 7.0),
    "zero": np.zeros(40),
    "tenth": np.full(40, 0.1),
    "large": np.full(40, -1.7e9),
    "rounding": 0.1 * 3 + np.where(np.arange(40) % 3, 0, 5.551115123125783e-17),
}
# Columns of 40 different values, most of which float32 cannot tell apart.
FINE = {
    "latitude": 52.123456 + np.arange(40) * 1e-6,
    "Unix time": 1.7e9 + RNG.permutation(40),
    "pressure": 101325 + 1e-3 * RNG.normal(size=40),
    "tiny": 1e-30 * RNG.normal(size=40),
    "huge": 1e38 * RNG.random(40),
    "plain": RNG.normal(size=40),
}


def table(columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack(list(columns.values()), axis=1)


@pytest.mark.parametrize("name", FINE)
def test_values_that_differ_still_do_when_standardised_and_printed(name, capsys):
    values = table({name: FINE[name], "other": RNG.normal(size=40)})
    mean, std = scaling.measure(values, (name, "other"), "it")
    np.testing.assert_allclose(mean[0], statistics.fmean(FINE[name].tolist()), rtol=1e-12, atol=0 if name != "plain" else 1e-12)
    np.testing.assert_allclose(std[0], statistics.pstdev(FINE[name].tolist()), rtol=1e-6)
    assert capsys.readouterr().err == ""
    spec = DataSpec("it", (1, 2), (name, "other"), mean=mean, std=std)
    scaled = spec.scale(values)
    assert scaled.dtype == np.float32 and len(np.unique(scaled[:, 0])) == 40
    np.testing.assert_allclose(scaled[:, 0].std(), 1, rtol=1e-5)
    printed = [scaling.written(spec, row) for row in spec.unscale(scaled)]
    assert len({cells[0] for cells in printed}) == 40
    np.testing.assert_array_equal(np.argsort([float(cells[0]) for cells in printed]), np.argsort(values[:, 0]))
    # What is printed gives the same float32 to the model.
    np.testing.assert_array_almost_equal_nulp(spec.scale(np.array(printed, float)), scaled, 1)


def test_neighbouring_outputs_of_a_model_are_printed_apart():
    spec = DataSpec("it", (1, 1), ("x",), mean=(3.0,), std=(17.0,))
    for start in (-2.5, -0.999999, 1e-4, 0.75, 1.9999999, 6.0):
        outputs = [np.float32(start)]
        for _ in range(20):
            outputs.append(np.nextafter(outputs[-1], np.float32(9)))
        printed = [scaling.written(spec, spec.unscale(np.array([one])))[0] for one in outputs]
        assert len(set(printed)) == 21
    assert scaling.written(spec, spec.unscale(np.zeros(1, np.float32))) == ["3"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_channels_are_centred_not_scaled_and_named(dtype, capsys):
    columns = {**CONSTANT, "varies": FINE["plain"]}
    values = table(columns).astype(dtype)
    mean, std = scaling.measure(values, tuple(columns), "it")
    assert std[:-1] == (1.0,) * 5
    spec = DataSpec("it", (1, 6), tuple(columns), mean=mean, std=std)
    np.testing.assert_allclose(spec.scale(values)[:, :-1], 0, atol=1e-6)
    # What differs later keeps its size.
    np.testing.assert_allclose(spec.scale(values + 3)[:, [0, 1, 2, 4]], 3, rtol=1e-5)
    note = "note: it: constant in the training split, therefore centred but not scaled: whole, zero, tenth, large, rounding.\n"
    assert capsys.readouterr().err == note


def opened(folder, data: str, content: dict[str, str], **changes):
    for name, text in content.items():
        write(folder / name, text)
    case = next(case for case in CASES.values() if case.data == data)
    config = case.config(folder, **changes)
    config.data.dir = str(folder / next(iter(content))) if data == "csv" else str(folder)
    return task_class(config.task).open(config)


def test_a_table_with_a_constant_column(tmp_path, capsys):
    rows = [f"{52.1 + 1e-6 * i},5,{1.7e9 + i}" for i in range(299)] + ["52.1,1000,1.7e9"]
    splits = opened(tmp_path, "csv", {"table.csv": "\n".join(["north,still,time", *rows])})
    assert splits.spec.std[1] == 1.0
    assert (
        f"note: {tmp_path}/table.csv: constant in the training split, therefore centred but not scaled: still.\n" in capsys.readouterr().err
    )
    train = gather(splits.train, np.arange(len(splits.train)))["input"]
    assert len(np.unique(train[..., 0])) == len(np.unique(train[..., 2])) > 100
    assert np.abs(train).max() < 3
    test = gather(splits.test, np.arange(len(splits.test)))["label"]
    assert test[..., 1].max() == 995


def test_series_with_a_constant_channel(tmp_path, capsys):
    lines = ["@classLabel true a b", "@data", *(f"{i},{i + 1},{i * i}:4,4,4:{'ab'[i % 2]}" for i in range(20))]
    splits = opened(tmp_path, "ucr:toy", {f"toy_{part}.ts": "\n".join(lines) for part in ("TRAIN", "TEST")}, **{"data.name": "ucr:toy"})
    assert capsys.readouterr().err == "note: ucr:toy: constant in the training split, therefore centred but not scaled: channel 2.\n"
    np.testing.assert_array_equal(gather(splits.test, np.arange(len(splits.test)))["input"][..., 1], 0)
    np.testing.assert_allclose(splits.spec.std, [float(np.std([v for i in range(20) for v in (i, i + 1, i * i)])), 1.0])
