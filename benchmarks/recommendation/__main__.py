"""The way in of `python -m benchmarks.recommendation`."""

import sys

from .cli import main

sys.exit(main())
