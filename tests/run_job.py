"""Run a job of `train` as one of several processes: `python tests/run_job.py main --config=...`.

Processes that end are found sooner than in real runs, and small arrays are spread, too.
"""

import importlib
import sys

from train import cli, hosts, parallel

if __name__ == "__main__":
    hosts.HEARTBEAT, parallel.SMALL = 12, 16
    job = importlib.import_module(f"train.{sys.argv.pop(1)}")
    cli.run(job.main)
