"""Addresses of services: what they are, and what of them may be shown."""

import base64
import ipaddress
import re
from urllib.parse import unquote, urlsplit

# A password may hold what an address may not, a slash above all. A number and a slash behind the colon are a port.
_LOGIN = r"(?:[^\s/]+|[^\s/:@]+:(?!\d+/)[^\s@]*)@"
_ADDRESS_WITH_LOGIN = re.compile(rf"(?<=://){_LOGIN}")
_QUERY = re.compile(r"(?<=://)([^\s?'\"<>]+)\?[^\s'\"<>)]*[^\s'\"<>).,:;]")


def is_http(uri: str) -> bool:
    """True for the address of a server, as opposed to a file or a database of this machine."""
    return urlsplit(uri).scheme in ("http", "https")


def is_loopback(uri: str) -> bool:
    """True for an address that means another machine to everyone else."""
    return is_loopback_host(urlsplit(uri).hostname or "")


def is_loopback_host(host: str) -> bool:
    """True for a host's name, or its IP address without brackets, that means this machine alone."""
    if host in ("localhost", "", "0.0.0.0") or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def without_secrets(text: str) -> str:
    """An address, or a text with addresses in it, as it may be shown.

    Names, passwords and queries, where signatures stand, are left out of each address.
    """
    return _QUERY.sub(r"\1?***", _ADDRESS_WITH_LOGIN.sub("***@", text))


def has_login(uri: str) -> bool:
    """True for an address with a name or a password in it."""
    return _ADDRESS_WITH_LOGIN.search(uri) is not None


def split_login(uri: str) -> tuple[str, tuple[str, str] | None]:
    """An address without its `name:password@`, and these two, if it has them."""
    found = _ADDRESS_WITH_LOGIN.search(uri)
    name, colon, password = found[0][:-1].partition(":") if found else ("", "", "")
    if found is None or not colon:
        return uri, None
    return uri[: found.start()] + uri[found.end() :], (unquote(name), unquote(password))


def basic_authorization(login: tuple[str, str]) -> str:
    """Name and password as HTTP's header `Authorization` carries them."""
    return f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
