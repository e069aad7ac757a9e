"""The socket of a server. Importing this module does not import torch: commands check the address first."""

import socket

BACKLOG = 2048  # connections that the kernel accepts while the server is busy


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Args:
        host: Name or address, IPv6 with or without brackets.
        port: Port; 0 for one that is free.

    Raises:
        OSError: If the address is not available. The message is one line.
    """
    try:
        name = host.strip("[]")
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((name, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"Can't listen on {host}:{port} ({reason}). Pass another --port or --host.") from error
