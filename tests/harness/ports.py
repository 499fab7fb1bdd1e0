"""Ports that the kernel chooses and reserves: no other process can take one between its choice and its use."""

from __future__ import annotations

import socket

_RESERVED: list[socket.socket] = []


def reserved_port() -> int:
    """A port of 127.0.0.1 on which nothing listens; until this process ends, the kernel offers it to no other program.

    A bound socket that does not listen refuses connections, and lets a server bind the port that sets SO_REUSEADDR, as
    waitress, gunicorn and Go do.
    """
    reserving = socket.socket()
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserving.bind(("127.0.0.1", 0))
    _RESERVED.append(reserving)
    port: int = reserving.getsockname()[1]
    return port
