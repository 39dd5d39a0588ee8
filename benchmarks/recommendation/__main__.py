"""Runs the command `python -m benchmarks.recommendation`."""

import sys

from .cli import main

sys.exit(main())
