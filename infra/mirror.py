"""Fetch one file of known size and SHA-256 from a mirror: resumed after a break, checked before it gets its name.

What it raises, a `MirrorError`, gives a reason without the address: the caller knows it, and who may see it.
"""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from errno import EHOSTUNREACH, ENETDOWN, ENETUNREACH
from functools import partial
from hashlib import file_digest
from pathlib import Path
from re import fullmatch
from socket import gaierror
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from infra.addresses import is_http, without_secrets
from infra.background import in_background
from infra.errors import SettingsError
from infra.proxies import left_out_proxy, through_proxy

if TYPE_CHECKING:
    import httpx

PART_SUFFIX = ".part"
CHUNK_BYTES = 1 << 18

T = TypeVar("T")
Source = tuple[int, Iterator[bytes]]
"""Where in the file the bytes begin (0: from the start again), and the bytes."""


class MirrorError(Exception):
    """A mirror did not deliver the file."""

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


class MirrorUnreachable(MirrorError):
    """Nobody answered: refused, no such name, or silence until the time limit."""


class MirrorInterrupted(MirrorError):
    """The mirror answered, then broke off or had no time: asking later may help."""


class MirrorRefused(MirrorError):
    """The mirror has no such file, does not let us read it, or sends us where we do not follow."""


class MirrorMismatch(MirrorError):
    """The mirror gave something else than the file: asking again does not help."""


@dataclass(frozen=True)
class Limits:
    """How long to wait, and how often to ask again after a break."""

    answer_seconds: float = 8.0
    """From asking to the head of the answer: name, connection, encryption, redirects, all together."""
    stall_seconds: float = 20.0
    """Without a single byte."""
    file_seconds: float = 1800.0
    """For one file from one mirror, however steadily it trickles."""
    attempts: int = 4
    """Of one mirror; only one that has answered is asked again."""
    pause_seconds: float = 0.5
    """Before the second attempt; doubled before each further one."""


DEFAULT_LIMITS = Limits()


def file_address(mirror: str, name: str) -> str:
    """The address of the file `name` in the folder `mirror`, or its path where that is a folder of this machine."""
    if "://" not in mirror or urlsplit(mirror).scheme == "file":
        folder = mirror if "://" not in mirror else unquote(urlsplit(mirror).path)
        return str(Path(folder).expanduser().absolute() / name)
    if is_http(mirror):
        parts = urlsplit(mirror)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
    return f"{mirror.rstrip('/')}/{name}"


class MirrorFile(NamedTuple):
    """A file, where it is, and how long it may take."""

    address: str
    size: int
    sha256: str
    limits: Limits = DEFAULT_LIMITS


def fetch_file(
    file: MirrorFile,
    target: Path,
    check: Callable[[Path], None] = lambda path: None,
    report: Callable[[int], None] = lambda have: None,
) -> None:
    """Bring the file to `target`, which appears whole and checked or not at all.

    What has arrived lies beside it as `NAME.part`; one that an earlier process left is continued.
    The caller sees to it that no two processes work on one target at a time. `check` may raise on what
    it finds in the whole file, which is then not kept; `report` is told how many bytes are there.

    Raises a `MirrorError`, `SettingsError` for an address that cannot be opened, `OSError` if this
    machine cannot keep the file.
    """
    part = target.with_name(target.name + PART_SUFFIX)
    for clean in (False, True):
        resumed = _receive(file, part, report)
        try:
            _check_digest(part, file.sha256)
            break
        except MirrorMismatch:
            part.unlink()
            # The pieces may be of two different files: only a file in one piece speaks for the mirror.
            if clean or not resumed:
                raise
    try:
        check(part)
    except BaseException:
        part.unlink()
        raise
    part.replace(target)


def _receive(file: MirrorFile, part: Path, report: Callable[[int], None]) -> bool:
    """Ask until `part` has as many bytes; true if it was put together from more than one answer."""
    _, size, _, limits = file
    deadline = time.monotonic() + limits.file_seconds
    resumed = _size(part) > 0
    answered = False
    for attempt in range(limits.attempts):
        if _size(part) == size:
            part.touch()  # An empty file is whole before anything came.
            report(size)
            return resumed
        if attempt:
            time.sleep(limits.pause_seconds * 2 ** (attempt - 1))
            resumed = resumed or _size(part) > 0
        try:
            with _open(file, _size(part)) as source:
                answered = True
                _append(part, source, size, deadline, report)
            return resumed
        except (MirrorUnreachable, MirrorInterrupted) as error:
            answered = answered or isinstance(error, MirrorInterrupted)
            if not answered:
                raise
            last = error
            if time.monotonic() > deadline:
                break
    raise MirrorInterrupted(f"{last}; {_size(part):,} of {size:,} bytes are here, attempt {attempt + 1}") from last


def _append(part: Path, source: Source, size: int, deadline: float, report: Callable[[int], None]) -> None:
    start, chunks = source
    have = start
    report(have)  # Which may raise, ahead of a change to a file that is another's by now.
    with part.open("ab") as file:
        file.truncate(start)
        for chunk in chunks:
            if have + len(chunk) > size:
                part.unlink()
                raise MirrorMismatch(f"sends more than the {size:,} bytes expected")
            file.write(chunk)
            have += len(chunk)
            report(have)
            if time.monotonic() > deadline:
                raise MirrorInterrupted("too slow")
    if have < size:
        looks = _looks(part)
        part.unlink()
        raise MirrorMismatch(f"is truncated: ends after {have:,} of {size:,} bytes{looks}")


def _check_digest(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise MirrorMismatch(f"has SHA-256 {found}, expected {sha256}{_looks(path)}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _looks(path: Path) -> str:
    with path.open("rb") as file:
        return " (it begins like a web page)" if file.read(1) == b"<" else ""


def _open(file: MirrorFile, offset: int) -> AbstractContextManager[Source]:
    address = file.address
    if is_http(address):
        return _open_http(file, offset)
    if "://" in address:
        raise SettingsError(_not_an_address(address, f"{address.partition('://')[0]} is not spoken here"))
    return _open_file(address, offset)


@contextmanager
def _open_http(file: MirrorFile, offset: int) -> Iterator[Source]:
    # Not fsspec's HTTP file system: it neither resumes nor stops at a size.
    import httpx

    address, size, _, limits = file
    if proxy := left_out_proxy(address):
        raise MirrorUnreachable(f"the proxy {proxy} cannot be used: only http:// and https:// proxies can")
    way = through_proxy(address)
    hooks = {"response": [_refuse_other_schemes]}
    with httpx.Client(timeout=limits.stall_seconds, follow_redirects=True, event_hooks=hooks) as client:

        def ask(offset: int) -> httpx.Response:
            # A server that compresses on the way would change the bytes.
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
            request = client.build_request("GET", address, headers=headers)
            return _within(limits.answer_seconds, lambda: client.send(request, stream=True))

        def chunks(response: httpx.Response) -> Iterator[bytes]:
            try:
                yield from response.iter_raw()
            except httpx.TimeoutException as error:
                raise MirrorInterrupted(f"no byte for {limits.stall_seconds:g} s") from error
            except httpx.HTTPError as error:
                raise MirrorInterrupted(f"the connection broke ({error})") from error

        try:
            response = ask(offset)
            if offset and response.status_code in (206, 416) and not _continues(response, offset):
                response.close()
                offset = 0
                response = ask(0)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise SettingsError(_not_an_address(address, error)) from error
        except httpx.TooManyRedirects as error:
            raise MirrorRefused("redirects without end") from error
        except httpx.ProxyError as error:
            raise MirrorUnreachable(f"no connection{way} ({error})") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise _failure(error, limits, way) from error
        try:
            _refuse_other_answers(response, offset, size, way)
            yield (offset if response.status_code == 206 else 0), chunks(response)
        finally:
            response.close()


def _refuse_other_schemes(response: "httpx.Response") -> None:
    """Raise before a redirect is followed to what is no web server: a file of this machine, an FTP server."""
    import httpx

    if not response.has_redirect_location:
        return
    location = response.headers["Location"]
    try:
        followed = is_http(str(response.url.join(location)))
    except httpx.InvalidURL:
        followed = False
    if not followed:
        raise MirrorRefused(f"redirects to {without_secrets(location)}, which is not followed")


def _continues(response: "httpx.Response", offset: int) -> bool:
    return str(response.headers.get("Content-Range")).startswith(f"bytes {offset}-")


def _refuse_other_answers(response: "httpx.Response", offset: int, size: int, way: str) -> None:
    """Raise unless the head of `response` promises the bytes from `offset`, or all of them."""
    status = f"{response.status_code} {response.reason_phrase}{way}"
    if response.status_code == 407:
        raise MirrorUnreachable(f"no connection{way} (it wants a login: 407 {response.reason_phrase})")
    if response.status_code >= 500 or response.status_code in (408, 425, 429):
        raise MirrorInterrupted(f"answered {status}")
    if response.status_code not in (200, 206):
        raise MirrorRefused(f"answered {status}")
    if response.status_code == 206:
        length = fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        found = length and length[1]
    else:
        found = response.headers.get("Content-Length")
    if found is not None and found != str(size):
        kind = response.headers.get("Content-Type", "no type")
        raise MirrorMismatch(f"answered with a file of {found} bytes ({kind}), expected {size:,} bytes")


@contextmanager
def _open_file(path: str, offset: int) -> Iterator[Source]:
    try:
        file = Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise MirrorRefused(f"there is no such file, or it may not be read ({error.strerror})") from error
    with file:
        file.seek(offset)
        yield offset, iter(partial(file.read, CHUNK_BYTES), b"")


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; `TimeoutError` if it takes longer, and is left to itself.

    The limits of a socket do not do: looking up a name has none, and connecting waits as long again
    for every address of a name, of which the large stores have a dozen.
    """
    return in_background(call).result(timeout=seconds)


def _failure(error: Exception, limits: Limits, way: str = "") -> MirrorError:
    """What `error`, raised while waiting for a mirror, means; `way` names the proxy between."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return MirrorRefused(f"has a certificate that this machine does not trust{way} ({cause})")
    for cause in causes:
        if isinstance(cause, TimeoutError):
            return MirrorUnreachable(f"no answer within {limits.answer_seconds:g} s{way}")
        if isinstance(cause, gaierror):
            return MirrorUnreachable(f"no such name{way} ({cause})")
        if isinstance(cause, ConnectionRefusedError):
            return MirrorUnreachable(f"refused the connection{way} ({cause})")
        if isinstance(cause, OSError) and cause.errno in (ENETUNREACH, EHOSTUNREACH, ENETDOWN):
            return MirrorUnreachable(f"there is no way to it{way} ({cause})")
    return MirrorInterrupted(f"broke off{way} ({str(error) or type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _not_an_address(address: str, error: Exception | str) -> str:
    return (
        f"The mirror address {without_secrets(address)} cannot be opened: {error}\n"
        "Expected http://, https://, file:// or a folder."
    )
