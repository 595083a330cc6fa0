"""The load cases, under the name that the requirements give them: `python load_test.py` in tests/."""

import sys

if __name__ == "__main__":
    from preflight_check import broker

    sys.exit(broker("test", "load"))
