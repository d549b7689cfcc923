"""`python -m recemb VERB` equals `recemb VERB`, for torchrun and for machines without scripts."""

import sys

from recemb.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
