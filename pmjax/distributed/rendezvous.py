"""Connects the processes of a run before JAX is used.

Start one process per host, each with the same command and

    PMJAX_COORDINATOR=HOST:PORT PMJAX_NUM_PROCESSES=N PMJAX_PROCESS_ID=0…N-1

where HOST:PORT is a free port on process 0's host that all can reach. Where JAX detects the
processes itself (TPU pods, SLURM), set PMJAX_DISTRIBUTED=auto instead. PMJAX_LOCAL_DEVICES=D
divides each CPU into D devices. PMJAX_HOST_TIMEOUT (default 300) is the time in seconds after which
a host that is silent or behind ends the run.
"""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pmjax import errors
from pmjax.distributed import accelerators
from pmjax.distributed.processes import TIMEOUT, Connection, ProcessGroup, ProcessSpec, processes
from pmjax.errors import UserError

_NAMES = ("PMJAX_COORDINATOR", "PMJAX_NUM_PROCESSES", "PMJAX_PROCESS_ID")
_Connected = tuple[dict[int, Connection], int]  # by process; and a free port for JAX
_GATHER = 2.0  # seconds in which more differences are collected after the first one


def process_spec(environ: Mapping[str, str] = os.environ) -> ProcessSpec:
    """Reads the variables PMJAX_*; raises `UserError` if one is missing or not valid."""
    common: dict[str, Any] = {
        "local_devices": _number(environ, "PMJAX_LOCAL_DEVICES", 0, least=1),
        "timeout": float(_number(environ, "PMJAX_HOST_TIMEOUT", TIMEOUT, least=2)),
    }
    detect = environ.get("PMJAX_DISTRIBUTED", "")
    if detect not in ("", "auto"):
        raise errors.unknown("PMJAX_DISTRIBUTED", detect, ["auto"])
    given = [name for name in _NAMES if environ.get(name)]
    if detect:
        if given:
            raise UserError(f"PMJAX_DISTRIBUTED=auto detects all processes: unset {given[0]}.")
        return ProcessSpec(detect=True, **common)
    if not given:
        return ProcessSpec(**common)
    missing = [name for name in _NAMES if name not in given]
    if missing:
        raise UserError(
            f"{' and '.join(given)} set, {' and '.join(missing)} not. Several processes need all "
            f"of {', '.join(_NAMES)}; a single process needs none."
        )
    host, _, port = environ["PMJAX_COORDINATOR"].rpartition(":")
    if not host or ":" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"PMJAX_COORDINATOR='{environ['PMJAX_COORDINATOR']}' must be HOST:PORT, "
            "such as 10.0.0.1:8476, where HOST is a name or an IPv4 address."
        )
    count = _number(environ, "PMJAX_NUM_PROCESSES", 1, least=1)
    index = _number(environ, "PMJAX_PROCESS_ID", 0, least=0)
    if index >= count:
        raise UserError(f"PMJAX_PROCESS_ID={index} must be below PMJAX_NUM_PROCESSES={count}.")
    return ProcessSpec(index=index, count=count, coordinator=environ["PMJAX_COORDINATOR"], **common)


def _number(environ: Mapping[str, str], name: str, default: float, *, least: int) -> int:
    text = environ.get(name)
    if not text:
        return int(default)
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}='{text}' must be a whole number, at least {least}.")
    return int(text)


def join(spec: ProcessSpec, shared: dict[str, Any]) -> ProcessGroup:
    """Connects to the other processes and initializes JAX; call it before JAX is first used.

    Raises:
      UserError: if a process does not connect, or one of the shared {name: JSON value} differs
        between hosts; names them.
    """
    if spec.count == 1 and not spec.detect:
        return ProcessGroup()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # `signals` handles SIGTERM
    timeouts: dict[str, Any] = {
        "initialization_timeout": int(spec.timeout),
        "heartbeat_timeout_seconds": 2 * int(spec.timeout) + 60,
        "shutdown_timeout_seconds": int(spec.timeout),
    }
    if spec.detect:
        jax.distributed.initialize(**timeouts)
        accelerators.start()
        spec = _detected(spec)
    peers, jax_port = connect(spec, shared)
    if not spec.detect:
        host = spec.coordinator.rsplit(":", 1)[0]
        jax.distributed.initialize(
            f"{host}:{jax_port}",
            spec.count,
            spec.index,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"{_interface(host) or '[::]'}:{jax_port}",
            **timeouts,
        )
    group = ProcessGroup(spec)
    group.attach(peers)
    return group


def connect(spec: ProcessSpec, shared: dict[str, Any]) -> _Connected:
    """Connects process 0 with all others, without JAX; arguments and errors are those of `join`."""
    shared = json.loads(json.dumps(shared, default=str))  # as the peer receives it: tuples as lists
    host, port = spec.coordinator.rsplit(":", 1)
    return (_accept if spec.index == 0 else _call)(spec, host, int(port), shared)


def _detected(spec: ProcessSpec) -> ProcessSpec:
    """Completes a specification with what JAX detected; process 0 sends the others its address."""
    address = np.zeros(64, np.uint8)
    if jax.process_index() == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the outward interface
            text = f"{probe.getsockname()[0]}:{_free_port('')}".encode()
        address[: len(text)] = np.frombuffer(text, np.uint8)
    address = multihost_utils.broadcast_one_to_all(address)
    return dataclasses.replace(
        spec,
        index=jax.process_index(),
        count=jax.process_count(),
        coordinator=bytes(np.asarray(address)).rstrip(b"\0").decode(),
    )


def _interface(host: str) -> str:
    """Returns the interface that process 0 listens on: loopback for a local host, else all."""
    return "127.0.0.1" if host == "localhost" or host.startswith("127.") else ""


def _free_port(interface: str) -> int:
    with socket.socket() as probe:
        probe.bind((interface, 0))
        return probe.getsockname()[1]


def _accept(spec: ProcessSpec, host: str, port: int, shared: dict) -> _Connected:
    """Waits as process 0 for all others and compares their shared values."""
    deadline = time.monotonic() + spec.timeout
    peers: dict[int, Connection] = {}
    connected: list[Connection] = []
    differences: list[str] = []
    try:
        server = socket.create_server((_interface(host), port))
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen on PMJAX_COORDINATOR={spec.coordinator} "
            f"({error.strerror}). Choose another port."
        ) from error
    with server:
        while len(peers) < spec.count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with suppress(TimeoutError):
                peer = Connection(server.accept()[0])
                hello = peer.receive(min(left, 10.0))
                if hello.get("kind") != "hello":
                    continue  # not one of ours: a port scanner, for instance
                connected.append(peer)
                index = hello["process"]
                if index in peers or hello["count"] != spec.count:
                    differences.append(
                        f"  process {index} of {hello['count']} connected; this is process 0 of "
                        f"{spec.count}{', and it was connected' if index in peers else ''}"
                    )
                differences += _differences(shared, hello["shared"], index)
                peers[index] = peer
                if differences:  # others may differ as well, but are not waited for
                    deadline = min(deadline, time.monotonic() + _GATHER)
    missing = sorted(set(range(1, spec.count)) - set(peers))
    why = ""
    if missing:
        why = (
            f"{processes(missing).capitalize()} did not connect to {spec.coordinator} within "
            f"{spec.timeout:.0f} s (PMJAX_HOST_TIMEOUT). Were they started, and can they reach it?"
        )
    if differences:
        listed = "\n".join(differences)
        why = f"The hosts were started differently:\n{listed}\nStart all with the same command."
    jax_port = _free_port(_interface(host))
    for peer in connected:
        peer.send(kind="welcome", jax_port=jax_port, refused=why)
    if why:
        raise UserError(why)
    return peers, jax_port


def _call(spec: ProcessSpec, host: str, port: int, shared: dict) -> _Connected:
    """Connects to process 0, as any other process."""
    deadline = time.monotonic() + spec.timeout
    while True:
        try:
            raw = socket.create_connection((host, port), timeout=5.0)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Process 0 cannot be reached at {spec.coordinator} within "
                    f"{spec.timeout:.0f} s (PMJAX_HOST_TIMEOUT): {error.strerror or error}."
                ) from error
            time.sleep(0.2)
    peer = Connection(raw)
    peer.send(kind="hello", process=spec.index, count=spec.count, shared=shared)
    answer = peer.receive(spec.timeout + 10.0)
    ended = f"Process 0 at {spec.coordinator} ended before all processes were connected."
    if refused := answer.get("refused", ended):
        raise UserError(refused)
    return {0: peer}, answer["jax_port"]


def _differences(ours: dict, theirs: dict, index: int) -> list[str]:
    return [
        f"  {name}: {ours.get(name)!r} on process 0, {theirs.get(name)!r} on process {index}"
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name)
    ]
