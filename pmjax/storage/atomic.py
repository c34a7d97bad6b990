"""Writes a file completely or not at all."""

import os
from pathlib import Path

from pmjax.storage import resource_errors


def write(path: Path, content: str | bytes, *, kept: str = "") -> None:
    """Writes a file, which has its name only when it is complete; makes its folder.

    Raises:
      NoSpace: if the disk is full; `kept` is its sentence on what is safe.
    """
    part = path.with_name(f"{path.name}.part")
    with resource_errors.disk(path.name, path.parent, kept=kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
