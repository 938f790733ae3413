"""`python3 -m fastsd_lib COMMAND`: the door of the house.

This file and the package's `__init__.py` keep to syntax that old Pythons can read, so that those hear which
Python is needed instead of a SyntaxError.
"""

import sys


def main(argv=None):
    if sys.version_info < (3, 10):
        found = ".".join(str(part) for part in sys.version_info[:3])
        sys.stderr.write(
            "fastsd needs Python 3.10 or newer; this is Python " + found + " (" + sys.executable + ").\n"
        )
        sys.stderr.write("  -> run it with a newer one, for example: python3.12 -m fastsd_lib\n")
        return 2
    from fastsd_lib import launch

    return launch.main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
