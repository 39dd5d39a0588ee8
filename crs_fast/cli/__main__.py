"""`python -m crs_fast.cli`."""

import sys

from crs_fast.cli import main

sys.exit(main())
