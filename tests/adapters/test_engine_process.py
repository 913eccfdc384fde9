"""Ports for engines: free, all different, and not those that the system gives to outgoing connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tightrope.adapters.engine_process import free_port, free_ports, is_taken

OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_are_free_and_all_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert not any(is_taken("127.0.0.1", port) for port in ports)


@pytest.mark.skipif(not OUTGOING.exists(), reason="which ports outgoing connections get is not known")
def test_no_outgoing_connection_can_have_the_port() -> None:
    first, last = map(int, OUTGOING.read_text().split())
    if first < 30_000:
        pytest.skip(f"this system gives ports from {first} on to outgoing connections")
    assert not any(first <= port <= last for port in free_ports(20))


def test_a_port_that_somebody_has_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr("tightrope.adapters.engine_process._PORTS", range(port, port + 1))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match=f"1 free ports from {port} to {port} are needed, not 0"):
            free_ports(1)
