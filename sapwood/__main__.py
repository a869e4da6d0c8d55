"""`python -m sapwood` is the command `sapwood`."""

import sys

from sapwood.cli import main

if __name__ == "__main__":  # not in the processes that multiprocessing spawns from this one
    sys.exit(main())
