"""`python -m maskaug` is the `maskaug` command."""

import sys

from maskaug.cli import main

sys.exit(main())
