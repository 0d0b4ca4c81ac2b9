"""`python -m trustbench`."""

import sys

from trustbench.cli import main

sys.exit(main())
