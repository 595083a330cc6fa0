"""`python -m broker`: the command line."""

import sys

if __name__ == "__main__":
    try:
        from broker.cli import main

        main()
    except KeyboardInterrupt:  # while modules are still being imported
        sys.exit(130)
