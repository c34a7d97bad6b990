"""A cloud's announcements are asked for where they are, whatever proxy the rest goes through."""

from pmjax.distributed import maintenance
from tests.killed_process import announcer


def test_no_proxy_is_used(monkeypatch, caplog):
    monkeypatch.setenv("PMJAX_MAINTENANCE_URL", "")  # which the server sets
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(maintenance, "EVERY", 0.01)
    announcer().set()
    acted = []
    maintenance.watch(act=lambda: acted.append(list(caplog.messages))).join(timeout=60)
    assert acted == [["Maintenance is announced (TERMINATE_ON_HOST_MAINTENANCE): stopping."]]
