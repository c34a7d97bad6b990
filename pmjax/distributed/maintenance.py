"""Maintenance that a cloud announces, taken as the wish to stop.

Google's hosts say it at

    PMJAX_MAINTENANCE_URL=http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event

which is asked every second: any answer but NONE. (A Spot slice that is taken away gets SIGTERM from
its system anyhow.)
"""

import logging
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Mapping

from pmjax.errors import UserError

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds
QUIET = ("", "NONE", "FALSE")
_NAME = "PMJAX_MAINTENANCE_URL"
# The address is the host's own: a proxy (http_proxy) does not know it.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def terminate() -> None:
    """Sends SIGTERM to the process group, for the script that has started this process to know."""
    os.killpg(os.getpgrp(), signal.SIGTERM)


def watch(
    *,
    act: Callable[[], None] = terminate,
    environ: Mapping[str, str] = os.environ,
) -> threading.Thread | None:
    """Acts once when maintenance is announced, if the environment has an address to ask.

    Raises:
      UserError: if the address is none of HTTP.
    """
    url = environ.get(_NAME)
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{_NAME}='{url}' must be an address that starts with http://.")
    thread = threading.Thread(target=_ask, args=(url, act), daemon=True)
    thread.start()
    return thread


def _ask(url: str, act: Callable[[], None]) -> None:
    told, pause = False, threading.Event()
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    while True:
        answer = ""
        try:
            with _direct.open(request, timeout=10) as response:
                answer = response.read(200).decode(errors="replace").strip()
        except OSError as error:
            if not told:
                log.warning("%s does not answer (%s); it is asked again every second.", url, error)
            told = True
        if answer.upper() not in QUIET:
            log.warning("Maintenance is announced (%s): stopping.", answer)
            act()
            return
        pause.wait(EVERY)
