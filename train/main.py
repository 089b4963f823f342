"""Train: `python -m train.main --config configs/digits.py [--workdir runs/digits] [--config.optim.lr=0.01]`."""

import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags

from dilax.errors import UserError
from train import cli, loop, run, runtime
from train.config import workdir_of

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with a variant after a colon: configs/digits.py:smoke.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the default is runs/NAME of the config.")
RESTART = flags.DEFINE_bool("restart", False, "Begin anew; an earlier run in the folder is moved aside.")
SUMMARY = flags.DEFINE_bool("summary", False, "Print the layers of the model and exit.")


def main(config: ConfigDict, argv: list[str]) -> int:
    """Run the job that the flags ask for; return the exit code."""
    if argv:
        raise UserError(f"{argv[0]!r} is no flag; write --config={argv[0]} or --workdir={argv[0]}.")
    runtime.keep_freed_memory()
    runtime.keep_compiled_programs(config.compilation_cache_dir)
    if SUMMARY.value:
        print(run.summary(config))
        return 0
    return loop.run(config, pathlib.Path(workdir_of(config, WORKDIR.value)), restart=RESTART.value)


if __name__ == "__main__":
    cli.run_with_config(main, CONFIG)
