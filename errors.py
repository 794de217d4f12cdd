"""Mistakes of the person at the keyboard, and how an entry point tells of them."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do, in one line."""


def run(main: Callable[[], int | None]) -> None:
    """Calls `main` and exits with what it returns (None is 0); a UserError becomes one line on stderr and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        # A loader worker's exception arrives with the worker's traceback in front of its own line.
        line = str(error).rsplit("UserError: ", 1)[-1].strip()
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:  # nothing of the user's: a bug, whose traceback is wanted
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
