"""Where a Ray cluster is, before Ray itself is asked: it would try for many minutes to reach one that is not there."""

import os
import socket

from manifests.errors import ConfigError

ALONE = "local"
"""A cluster of this machine, started for the job."""
_NAMES = (ALONE, "auto")


def ray_address(given: str | None) -> str:
    """The address to connect to: what is given, else the environment's ``RAY_ADDRESS``, else `ALONE`.

    Raises:
        ConfigError: it is no address, or nobody listens there.
    """
    address = given or os.environ.get("RAY_ADDRESS") or ALONE
    if address in _NAMES:
        return address
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{address}: no address of a Ray cluster; give HOST:PORT, ray://HOST:PORT, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{address}: no Ray cluster answers ({' '.join(str(error).split())})") from None
    return address
