"""Progress bars for work on data that may take minutes."""

import sys

from tqdm import tqdm


def progress(title: str, total: int | None = None, *, unit: str = " images", **kwargs) -> tqdm:
    """Returns a progress bar on stderr, with rate and time left, which short work does not show."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=title, unit=unit, file=sys.stderr, delay=1, leave=False,
                mininterval=interval, miniters=1, **kwargs)  # fmt: skip
