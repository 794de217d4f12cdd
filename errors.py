"""The project's errors, and how an entry point reports them."""

import errno
import importlib
import sys
from collections.abc import Callable
from typing import Any

LESS_MEMORY = "--inference.window 465, a smaller --inference.batch_pixels, or --inference.long_side 512"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # full disk


class UserError(Exception):
    """An error that the user can correct. One line says what is wrong, where, and what to do."""


class Failure(Exception):  # noqa: N818, a name like KeyboardInterrupt
    """An error at run time though the command is right. One line says what happened, where, and what is left."""


def extra(module: str) -> Any:
    """Imports a module of a package in requirements-extra.txt. Raises UserError if the package is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"the package {package} is missing: run pip install -r requirements-extra.txt") from error


def run(main: Callable[[], int | None]) -> None:
    """Calls `main` and exits with its result (None is 0). An error prints one line on stderr. Exit codes: 2 for a UserError or
    an unreadable file, 1 for a Failure, a full disk or full memory, 130 for an interrupt. A bug keeps its traceback."""
    try:
        sys.exit(main())
    except UserError as error:
        # The message of a loader worker's error begins with the worker's traceback.
        _end(str(error).rsplit("UserError: ", 1)[-1].strip(), 2)
    except Failure as error:
        _end(str(error), 1)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        _end(f"too little memory: train with smaller --data.crop or larger --train.accumulate, predict with {LESS_MEMORY}", 1)
    except OSError as error:
        if error.errno in DISK_FULL:
            _end(f"{error.filename or 'writing'}: {error.strerror}: free disk space and run the same command again", 1)
        if error.filename is None:  # no file of the user: a bug keeps its traceback
            raise
        _end(f"{error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether the memory was too small for a tensor (on a GPU or a CPU) or for an array."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _end(line: str, code: int) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
