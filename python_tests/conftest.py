"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker per core: more threads would wait for each other. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, which any test module may do.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds redial/, inspired/ and iard/."""
    root = os.environ.get("CRS_FAST_DATA")
    if not root:
        pytest.skip("CRS_FAST_DATA is not set")
    return Path(root)
