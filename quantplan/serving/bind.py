"""Which addresses other machines can reach, and what a server needs before it listens there."""

from __future__ import annotations

import ipaddress

from quantplan.errors import PublicWithoutKey


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost may be anything: it counts as public."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_bind(host: str, *, public: bool, has_key: bool) -> None:
    """Raises PublicWithoutKey: a public address has to be asked for, and needs a key."""
    if is_loopback(host):
        return
    if not public:
        raise PublicWithoutKey(host=host, lacks="that was not asked for")
    if not has_key:
        raise PublicWithoutKey(host=host, lacks="there is no API key")
