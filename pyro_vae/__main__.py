"""``python -m pyro_vae``: the command line, where its script is not on the path."""

import sys

from pyro_vae.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
