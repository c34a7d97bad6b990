"""Writes a file completely or not at all."""

import os
from pathlib import Path

from pmjax.storage import resource_errors


def write(path: Path, content: str | bytes, *, still_intact: str = "") -> None:
    """Writes a file, which has its name only when it is complete; makes its folder.

    Raises:
      NoSpace: if the disk is full; `still_intact` is its sentence on what is intact.
    """
    part = path.with_name(f"{path.name}.part")
    with resource_errors.disk(path.name, path.parent, still_intact=still_intact):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
