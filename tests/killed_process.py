"""Runs pmjax.main, which gets a signal in the middle of something: see `MOMENTS`.

python -m tests.killed_process SIGNAL MOMENT <arguments of pmjax.main>
"""

import http.server
import importlib
import os
import signal
import sys
import threading
import time

from pmjax.distributed import maintenance

# What a run does: what is called then, in whose name (None: any), and at which call.
MOMENTS = {
    "compilation": ("pmjax.distributed.compile._compile_jit", None, 1),
    "step": ("pmjax.training.monitor.MetricsMonitor.update", None, 3),
    "checkpoint": ("pmjax.storage.checkpoint.Checkpoints._list_files", None, 2),
    "evaluation": ("pmjax.evals.runner.run", None, 1),
    "metrics": ("pathlib.Path.replace", "metrics.json.part", 1),
    "report": ("os.replace", "report.html.part", 1),
}


def main():
    name, moment = sys.argv[1], sys.argv[2]
    if name == "maintenance":
        announce = announcer()
    target, named, wanted = MOMENTS[moment]
    place, _, attribute = target.rpartition(".")
    calls = []

    def send(after=0.0):
        time.sleep(after)
        if name == "maintenance":
            announce.set()
            time.sleep(4 * maintenance.EVERY)  # until it has been heard of
        else:
            os.kill(os.getpid(), getattr(signal, name))

    def patch():
        owner = find(place)
        real = getattr(owner, attribute)

        def patched(*args, **kwargs):
            if named is None or os.path.basename(args[0]) == named:
                calls.append(args)
            if len(calls) == wanted:
                calls.append(None)
                if moment == "compilation":  # which follows at once, and takes longer
                    threading.Thread(target=send, args=(0.2,)).start()
                else:
                    send()
            return real(*args, **kwargs)

        setattr(owner, attribute, patched)

    from pmjax import cli
    from pmjax import main as command

    cached = cli.cache_compilations

    def late():  # main decides on devices before anything else is imported
        cached()
        patch()

    cli.cache_compilations = late
    sys.argv = ["main", *sys.argv[3:]]
    cli.run(command.main)


def announcer():
    """Serves what a cloud's host would say; returns what makes it announce maintenance."""
    announced = threading.Event()

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"TERMINATE_ON_HOST_MAINTENANCE" if announced.is_set() else b"NONE")

        def log_message(self, *args):
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["PMJAX_MAINTENANCE_URL"] = f"http://127.0.0.1:{server.server_port}/"
    return announced


def find(place):
    """Returns a module, or a class of one."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    main()
