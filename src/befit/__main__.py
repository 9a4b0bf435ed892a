"""`python -m befit` is `befit`."""

import sys

from befit.cli import main

sys.exit(main())
