"""Stops the run when the cloud announces maintenance of the host.

On Google's hosts, set

    PMJAX_MAINTENANCE_URL=http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event

The address is polled every second; any answer but NONE announces maintenance. (Preempted Spot
slices get SIGTERM from their operating system.)
"""

import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping

from pmjax.errors import UserError

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds
QUIET = ("", "NONE", "FALSE")
_NAME = "PMJAX_MAINTENANCE_URL"
# The address is local to the host, so proxies (http_proxy) are not used.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def terminate() -> None:
    """Sends SIGTERM to the process group, which includes the script that started this process."""
    os.killpg(os.getpgrp(), signal.SIGTERM)


def watch(
    *,
    act: Callable[[], None] = terminate,
    environ: Mapping[str, str] = os.environ,
) -> threading.Thread | None:
    """Polls the environment's address, if any, in a thread, and acts once on an announcement."""
    url = environ.get(_NAME)
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{_NAME}='{url}' must start with http:// or https://.")
    thread = threading.Thread(target=_poll, args=(url, act), daemon=True)
    thread.start()
    return thread


def _poll(url: str, act: Callable[[], None]) -> None:
    warned = False
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    while True:
        answer = ""
        try:
            with _direct.open(request, timeout=10) as response:
                answer = response.read(200).decode(errors="replace").strip()
        except OSError as error:
            if not warned:
                log.warning("%s does not answer (%s); it is polled again every second.", url, error)
            warned = True
        if answer.upper() not in QUIET:
            log.warning("Maintenance is announced (%s): stopping.", answer)
            act()
            return
        time.sleep(EVERY)
