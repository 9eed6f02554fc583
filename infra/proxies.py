"""The proxies that the environment names, and which requests take them.

Every library reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY in its own way, and no two the same.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from infra.addresses import is_http, is_loopback, is_loopback_host, without_secrets

_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
_LEFT_OUT = "PIPELINE_LEFT_OUT_"
"""Begins the name under which a proxy that nobody here can use is kept, for this process and its children."""


def keep_loopback_direct(environment: MutableMapping[str, str]) -> None:
    """Let no request to this machine take a proxy, whatever `environment` says.

    A proxy that is not http:// or https:// is left out: with one httpx, and so Prefect, cannot even make a client for
    a host that needs no proxy. Who would have needed it is told by `left_out_proxy`.
    """
    named = [name for name in environment if name.lower() in _VARIABLES and environment[name]]
    for name in named:
        if not _is_usable(environment[name]):
            environment[_LEFT_OUT + name] = without_secrets(environment.pop(name))
    if not named:
        return
    # Each library understands single hosts, and hardly one of them 127.0.0.0/8: those in use are named.
    hosts = dict.fromkeys(("127.0.0.1", "localhost", "::1", *sorted(_loopback_hosts(environment.values()))))
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts |= {host: None for entry in given.split(",") if _is_understood(host := entry.strip().strip("[]"))}
    # In both spellings, for which one counts differs as well.
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)


def proxy_for(uri: str) -> str | None:
    """The proxy that a request to `uri` takes, as it may be shown; None if it takes none."""
    found = getproxies_environment()
    scheme = urlsplit(uri).scheme
    proxy = found.get(scheme) or found.get("all")
    if not proxy or _is_direct(uri):
        return None
    return f"{without_secrets(proxy)} ({scheme.upper() if found.get(scheme) else 'ALL'}_PROXY)"


def left_out_proxy(uri: str) -> str | None:
    """The proxy that a request to `uri` should take and cannot, as it may be shown; None if there is none."""
    if _is_direct(uri) or proxy_for(uri):
        return None
    for variable in (f"{urlsplit(uri).scheme}_proxy", "all_proxy"):
        for name, proxy in os.environ.items():
            if name.startswith(_LEFT_OUT) and name.removeprefix(_LEFT_OUT).lower() == variable:
                return f"{proxy} ({variable.upper()})"
    return None


def through_proxy(uri: str) -> str:
    """What to add to an error of a request to `uri`, so that it names the proxy; empty if there is none."""
    proxy = proxy_for(uri)
    return f" through the proxy {proxy}" if proxy else ""


def _is_direct(uri: str) -> bool:
    return not is_http(uri) or is_loopback(uri) or bool(proxy_bypass(urlsplit(uri).hostname or ""))


def _is_usable(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _is_understood(entry: str) -> bool:
    """False for an entry of NO_PROXY with which httpx makes no client at all, such as a network of IPv6."""
    if re.fullmatch(r"[!-9;-~]+(:\d+)?", entry):
        return True
    try:
        return ipaddress.ip_address(entry).version == 6
    except ValueError:
        return False


def _loopback_hosts(addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        with suppress(ValueError):
            host = urlsplit(address).hostname if is_http(address) else None
            if host and is_loopback_host(host):
                yield host
