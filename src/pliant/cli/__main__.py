"""`python -m pliant.cli`, the same program as `pliant`."""

import sys

from pliant.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
