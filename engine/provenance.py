"""Where a result comes from."""

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def commit() -> str | None:
    """The commit of the code that runs, with "-dirty" after it where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
