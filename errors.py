"""What goes wrong, and how an entry point tells of it."""

import errno
import importlib
import sys
from collections.abc import Callable
from typing import Any

LESS_MEMORY = "--inference.window 465, a smaller --inference.batch_pixels, or --inference.long_side 512"
FULL = (errno.ENOSPC, errno.EDQUOT)  # no room on the disk


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do, in one line."""


class Failure(Exception):  # noqa: N818, as KeyboardInterrupt is none
    """Something that went wrong on the way, with nothing wrong in the command: what, where, what is left, in one line."""


def extra(module: str) -> Any:
    """A module of a package in requirements-extra.txt. Raises UserError if the package is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"the package {package} is missing: run pip install -r requirements-extra.txt") from error


def run(main: Callable[[], int | None]) -> None:
    """Calls `main` and exits with what it returns (None is 0); a UserError becomes one line on stderr and exit code 2, a
    Failure (and a full disk or memory) one line and exit code 1."""
    try:
        sys.exit(main())
    except UserError as error:
        # A loader worker's exception arrives with the worker's traceback in front of its own line.
        _end(str(error).rsplit("UserError: ", 1)[-1].strip(), 2)
    except Failure as error:
        _end(str(error), 1)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        _end(f"too little memory: train with a smaller --data.crop or larger --train.accumulate, predict with {LESS_MEMORY}", 1)
    except OSError as error:
        if error.errno in FULL:
            _end(f"{error.filename or 'writing'}: {error.strerror}: make room and run the same command again", 1)
        if error.filename is None:  # nothing of the user's: a bug, whose traceback is wanted
            raise
        _end(f"{error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether there was no memory for a tensor, on a GPU or a CPU, or for an array."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _end(line: str, code: int) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
