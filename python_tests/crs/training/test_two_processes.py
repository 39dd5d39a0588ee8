"""Two processes of one training run: they learn what one process learns."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import crs_fast

from .test_train import FULL, run, system

WORKER = """
import sys
from pathlib import Path
from crs_fast.crs.training.processes import join_processes
from python_tests.crs.training.test_train import FULL, run, system
join_processes()
run(system(), Path(sys.argv[1]), FULL)
"""


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """A step of two processes reads the two batches that one process accumulates. Some seconds:
    the processes import everything anew."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    together = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(crs_fast.__file__).parents[1]), *sys.path]),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "two")],
            env={**together, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    one = run(system(), tmp_path / "one", replace(FULL, accumulate=2))
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    lines = (tmp_path / "two/training/loss.jsonl").read_text().splitlines()
    two = [json.loads(line) for line in lines]
    assert len(two) == one.steps >= 4
    for name, tolerance in (("loss", 1e-4), ("learning_rate", 1e-6), ("tokens", 0)):
        curve = [entry[name] for entry in one.losses]
        assert [entry[name] for entry in two] == pytest.approx(curve, rel=tolerance), name
