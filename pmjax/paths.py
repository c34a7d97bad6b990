"""Paths as people write them: ~ is the home directory, and URLs are refused."""

import os
import re
from pathlib import Path

from pmjax.errors import UserError

VARIABLES = ("PMJAX_CACHE", "PMJAX_INCEPTION_WEIGHTS")  # which name paths
# With one slash as well, which is what pathlib makes of gs://BUCKET.
_URL = re.compile("[a-z][a-z0-9+.-]+://|(file|gs|hdfs|https?|s3):/", re.IGNORECASE)


def local(path: str | os.PathLike[str], *, variable: str = "") -> Path:
    """Returns a path of this machine, with ~ expanded; `variable`, if any, is where it comes from.

    Raises:
      UserError: for a URL, an empty path, and a ~ without a home directory.
    """
    if not os.fspath(path):
        raise UserError("A path is empty. Give a name; '.' is the current directory.")
    refuse_url(path)
    expanded = os.path.expanduser(path)
    if os.fspath(expanded).startswith("~"):
        instead = f"Set {variable} to a directory" if variable else "Give the full path"
        raise UserError(f"{path}: there is no such home directory. {instead} instead.")
    return Path(expanded)


def refuse_url(path: str | os.PathLike[str]) -> None:
    """Raises `UserError` for a URL such as gs://BUCKET/DIR."""
    if _URL.match(os.fspath(path)):
        raise UserError(
            f"{path} is a URL, and pmjax reads and writes local files only. Mount a bucket as a "
            f"directory (for gs://, with gcsfuse) or download the files, and give the local path."
        )


def cache() -> Path:
    """Returns the directory of what pmjax caches: $PMJAX_CACHE, or ~/.cache/pmjax."""
    return local(os.environ.get("PMJAX_CACHE") or "~/.cache/pmjax", variable="PMJAX_CACHE")
