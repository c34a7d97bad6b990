"""How the processes of a run are started, and meet before JAX is used.

One process a host, each with the same command and

    PMJAX_COORDINATOR=HOST:PORT PMJAX_NUM_PROCESSES=N PMJAX_PROCESS_ID=0…N-1

where HOST:PORT is a free port of process 0's host that all can reach; or, where JAX finds out by
itself (TPU pods, SLURM), with PMJAX_DISTRIBUTED=auto. PMJAX_LOCAL_DEVICES=D makes D devices of
each CPU. PMJAX_HOST_TIMEOUT (300) is how many seconds a host may be silent or behind.
"""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pmjax import errors
from pmjax.distributed.processes import TIMEOUT, Connection, ProcessGroup, ProcessSpec, processes
from pmjax.errors import UserError

_NAMES = ("PMJAX_COORDINATOR", "PMJAX_NUM_PROCESSES", "PMJAX_PROCESS_ID")
_GATHER = 2.0  # seconds for others to come once one has come that was started differently


def place(environ: Mapping[str, str] = os.environ) -> ProcessSpec:
    """Reads PMJAX_*; raises `UserError` for what is missing or no number."""
    common = {
        "local_devices": _number(environ, "PMJAX_LOCAL_DEVICES", 0, least=1),
        "timeout": float(_number(environ, "PMJAX_HOST_TIMEOUT", TIMEOUT, least=2)),
    }
    detect = environ.get("PMJAX_DISTRIBUTED", "")
    if detect not in ("", "auto"):
        raise errors.unknown("PMJAX_DISTRIBUTED", detect, ["auto"])
    given = [name for name in _NAMES if environ.get(name)]
    if detect:
        if given:
            raise UserError(f"PMJAX_DISTRIBUTED=auto finds out by itself: unset {given[0]}.")
        return ProcessSpec(detect=True, **common)
    if not given:
        return ProcessSpec(**common)
    missing = [name for name in _NAMES if name not in given]
    if missing:
        raise UserError(
            f"{' and '.join(given)} set, {' and '.join(missing)} not: several processes need all "
            f"three of {', '.join(_NAMES)}; one process none of them."
        )
    host, _, port = environ["PMJAX_COORDINATOR"].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"PMJAX_COORDINATOR='{environ['PMJAX_COORDINATOR']}' must be HOST:PORT, "
            "such as 10.0.0.1:8476."
        )
    count = _number(environ, "PMJAX_NUM_PROCESSES", 1, least=1)
    index = _number(environ, "PMJAX_PROCESS_ID", 0, least=0)
    if index >= count:
        raise UserError(f"PMJAX_PROCESS_ID={index} must be below PMJAX_NUM_PROCESSES={count}.")
    return ProcessSpec(index=index, count=count, coordinator=environ["PMJAX_COORDINATOR"], **common)


def _number(environ, name, default, *, least):
    text = environ.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}='{text}' must be a whole number, at least {least}.")
    return int(text)


def join(where: ProcessSpec, facts: dict[str, Any]) -> ProcessGroup:
    """Meets the other processes and sets JAX up; call it before JAX is first used.

    Args:
      where: from `place`.
      facts: what has to be the same on all hosts, {name: JSON value}.

    Raises:
      UserError: naming the processes that do not come, or the facts that differ.
    """
    if where.count == 1 and not where.detect:
        return ProcessGroup()
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is taken by `signals`
    watch = {
        "initialization_timeout": int(where.timeout),
        "heartbeat_timeout_seconds": 2 * int(where.timeout) + 60,
        "shutdown_timeout_seconds": int(where.timeout),
    }
    if where.detect:
        jax.distributed.initialize(**watch)
        where = _detected(where)
    peers, jax_port = meet(where, facts)
    if not where.detect:
        host = where.coordinator.rsplit(":", 1)[0]
        jax.distributed.initialize(
            f"{host}:{jax_port}",
            where.count,
            where.index,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"{_interface(host) or '[::]'}:{jax_port}",
            **watch,
        )
    hosts = ProcessGroup(where)
    hosts.attach(peers)
    return hosts


def meet(where: ProcessSpec, facts: dict[str, Any]) -> tuple[dict[int, Connection], int]:
    """Connects process 0 with all others, without JAX; the arguments and errors are `join`'s.

    Returns:
      The connections by process, and a port of process 0's host that is free for JAX.
    """
    facts = json.loads(json.dumps(facts, default=str))  # tuples as they will arrive
    host, port = where.coordinator.rsplit(":", 1)
    return (_welcome if where.index == 0 else _knock)(where, host, int(port), facts)


def _detected(where: ProcessSpec) -> ProcessSpec:
    """Completes a place from what JAX found out, process 0 telling the others its address."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    address = np.zeros(64, np.uint8)
    if jax.process_index() == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which interface leads outside
            text = f"{probe.getsockname()[0]}:{_free_port('')}".encode()
        address[: len(text)] = np.frombuffer(text, np.uint8)
    address = multihost_utils.broadcast_one_to_all(address)
    return dataclasses.replace(
        where,
        index=jax.process_index(),
        count=jax.process_count(),
        coordinator=bytes(np.asarray(address)).rstrip(b"\0").decode(),
    )


def _interface(host: str) -> str:
    """Returns what process 0 listens on: a machine's own name may not be the others' way to it."""
    return "127.0.0.1" if host == "localhost" or host.startswith("127.") else ""


def _free_port(interface: str) -> int:
    with socket.socket() as probe:
        probe.bind((interface, 0))
        return probe.getsockname()[1]


def _welcome(where: ProcessSpec, host: str, port: int, facts: dict) -> tuple[dict, int]:
    """Waits as process 0 for all others and compares what they bring."""
    deadline = time.monotonic() + where.timeout
    peers: dict[int, Connection] = {}
    came: list[Connection] = []
    differing: list[str] = []
    try:
        server = socket.create_server((_interface(host), port))
    except OSError as error:
        raise UserError(
            f"PMJAX_COORDINATOR={where.coordinator}: process 0 cannot listen there "
            f"({error.strerror}). Take another port."
        ) from error
    with server:
        while len(peers) < where.count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with suppress(TimeoutError):
                peer = Connection(server.accept()[0])
                hello = peer.receive(min(left, 10.0))
                if hello.get("kind") != "hello":
                    continue  # something else that tries ports
                came.append(peer)
                index = hello["process"]
                if index in peers or hello["count"] != where.count:
                    differing.append(
                        f"  a process {index} of {hello['count']} came; this is process 0 of "
                        f"{where.count}{', and there is one already' if index in peers else ''}"
                    )
                differing += _differing(facts, hello["facts"], index)
                peers[index] = peer
                if differing:  # the others may differ, too, but are not waited for
                    deadline = min(deadline, time.monotonic() + _GATHER)
    missing = sorted(set(range(1, where.count)) - set(peers))
    why = ""
    if missing:
        why = (
            f"{processes(missing).capitalize()} did not come to {where.coordinator} within "
            f"{where.timeout:.0f} s (PMJAX_HOST_TIMEOUT). Were they started, and can they reach it?"
        )
    if differing:
        listed = "\n".join(differing)
        why = f"The hosts were started differently:\n{listed}\nStart all with the same command."
    jax_port = _free_port(_interface(host))
    for peer in came:
        peer.send(kind="welcome", jax_port=jax_port, refused=why)
    if why:
        raise UserError(why)
    return peers, jax_port


def _knock(where: ProcessSpec, host: str, port: int, facts: dict) -> tuple[dict, int]:
    """Goes to process 0, as any other."""
    deadline = time.monotonic() + where.timeout
    while True:
        try:
            raw = socket.create_connection((host, port), timeout=5.0)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Process 0 cannot be reached at {where.coordinator} within "
                    f"{where.timeout:.0f} s (PMJAX_HOST_TIMEOUT): {error.strerror or error}."
                ) from error
            time.sleep(0.2)
    peer = Connection(raw)
    peer.send(kind="hello", process=where.index, count=where.count, facts=facts)
    answer = peer.receive(where.timeout + 10.0)
    if not answer:
        raise UserError(f"Process 0 at {where.coordinator} ended before all processes had come.")
    if answer["refused"]:
        raise UserError(answer["refused"])
    return {0: peer}, answer["jax_port"]


def _differing(ours: dict, theirs: dict, index: int) -> list[str]:
    return [
        f"  {name}: {ours.get(name)!r} on process 0, {theirs.get(name)!r} on process {index}"
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name)
    ]
