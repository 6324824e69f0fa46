"""`python -m lspread` does what the `lspread` command does."""

import sys

from lspread.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
