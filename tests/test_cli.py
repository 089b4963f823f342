"""The command line: every mistake is one line on stderr and exit code 2."""

import pathlib
import subprocess
import sys

import pytest

from dilax import models

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py"
CASES = {
    "nothing": ([], "give --config=configs/NAME.py, such as --config=configs/digits.py."),
    "no such file": (
        ["--config=configs/nope.py"],
        "there is no config file configs/nope.py; give --config=configs/NAME.py, from the folder that holds configs/.",
    ),
    "no such file, with a change": (
        ["--config=configs/nope.py", "--config.seed=1"],
        "there is no config file configs/nope.py; give --config=configs/NAME.py, from the folder that holds configs/.",
    ),
    "variant": (
        ["--config=configs/digits.py:smok"],
        "configs/digits.py has no variant 'smok'; use one of ('full', 'smoke'). Did you mean \"smoke\"?",
    ),
    "misspelt key": ([DIGITS, "--config.optim.lrr=1"], 'unknown config key config.optim.lrr. Did you mean "lr"?'),
    "misspelt part": ([DIGITS, "--config.optm.lr=1"], 'unknown config key config.optm.lr. Did you mean "optim"?'),
    "wrong type": (
        [DIGITS, "--config.optim.lr=fast"],
        "flag --config.optim.lr=fast: could not convert string to float: 'fast'; see --help.",
    ),
    "unknown flag": ([DIGITS, "--workdri=x"], 'unknown flag --workdri; see --help. Did you mean "workdir"?'),
    "a bare word": ([DIGITS, "runs/x"], "'runs/x' is no flag; write --config=runs/x or --workdir=runs/x."),
    "another model": (
        [DIGITS, "--config.model.name=separable_cnn", "--summary"],
        "config.model.name='separable_cnn' has no field kernel_size, pools; set another model in a config file, with model_config(...).",
    ),
    "no get_config": (["--config=train/tasks.py"], "the config file has no function get_config; see those in configs/."),
    "unknown model": (
        [DIGITS, "--config.model.name=dilated_cnnn", "--summary"],
        f"config.model.name='dilated_cnnn' is unknown; known are {', '.join(models.names())}. Did you mean \"dilated_cnn\"?",
    ),
}


def train(arguments: list[str], module: str = "main") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", f"train.{module}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path):
    arguments, text = CASES[name]
    done = train([*arguments, f"--workdir={tmp_path / 'run'}"] if arguments else [])
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {text}\n")


def test_a_file_that_is_no_python(tmp_path):
    done = train(["--config=README.md", f"--workdir={tmp_path / 'run'}"])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: the config file cannot be loaded: ")


def test_unknown_dataset(tmp_path):
    done = train([DIGITS, "--config.data.name=cifar01", f"--config.data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith('error: there is no dataset "cifar01"')
    assert done.stderr.endswith('Did you mean "cifar10"?\n')
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("module", "words"), [("evaluate", "--workdir"), ("predict", "--workdir"), ("prepare", "name")])
def test_jobs_without_arguments(module, words):
    done = train([], module)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


def test_summary():
    done = train([DIGITS, "--summary"])
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds", "receptive", "field"]
    assert lines[1].split() == ["ConvNormAct_0/DilatedConv_0", "DilatedConv", "28x28x16", "144", "112,896", "3x3"]
    assert lines[-1].startswith("total")
