"""A lease in the object store: of all who want it, on whatever machine, one has it; after its death the next one.

Who wants it puts a claim into `leases/`, an object of its own, and renews it as long as he lives: each time another
object with a name of its own, before the last one is removed. Neither clocks are compared nor conditional writes
needed, which not every S3 server heeds, and nothing is overwritten: rclone's server does not list an object in that
moment, or breaks off who reads it. All that is needed is that a listing shows what was written before it, as S3 and
folders do.

    leases/<lease>.<claim>                               who made the claim and when; it is gone, so is the claim
    leases/<lease>.<claim>.<renewal>.<ticket>.<holds>    the last sign of life

Whose turn it is follows from tickets, as in Lamport's bakery (1974): a claim first has none, then one more than the
highest that its maker sees, or 0 if it sees no other claim, and with that has the lease. Claims without a ticket are
waited for; the lowest ticket, of equal ones the lower name, has the lease.

A claim that has not changed for as long as it says itself, measured by the clock of who looks, is a dead one's: who
waits removes it. Who lives and was only stopped so long finds it missing, or finds that another holds the lease, at the
next renewal or at `check`, and must not go on; the training program looks before each thing that it writes. What
remains: what a process was writing in the very moment when it was stopped is written when it goes on; and if that was
its claim, it may write until its next renewal.
"""

import getpass
import hashlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

from infra.addresses import without_secrets
from infra.errors import LeaseLost, ObjectStoreError, ObjectStoreUnreachable
from infra.object_store import ObjectStore

LOGGER = logging.getLogger(__name__)

FOLDER = "leases"
SECONDS = 60.0
RENEWALS = 6  # In that time.
POLL_SECONDS = 1.0
SECONDS_TO_RELEASE = 1.0


def claimant(locks_folder: Path) -> str:
    """Who makes claims for the processes that share the locks in this folder: 16 hexadecimal digits.

    A lock there comes before the lease, so an older claim of the same claimant is a dead one's. Neither host name nor
    path would do: the copy of a virtual machine has both.
    """
    locks_folder.mkdir(parents=True, exist_ok=True)
    place = locks_folder.stat()
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return hashlib.sha256(f"{socket.gethostname()} {boot} {place.st_dev} {place.st_ino}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a claim."""

    renewal: int = -1
    ticket: int | None = None
    holds: bool = False

    def __str__(self) -> str:
        return f"{self.renewal}.{'none' if self.ticket is None else self.ticket}.{'holds' if self.holds else 'waits'}"

    @classmethod
    def read(cls, text: str) -> "Sign":
        """Of the last three words of an object's name; raises `ValueError` if they are none."""
        renewal, ticket, holds = text.split(".")
        return cls(int(renewal), None if ticket == "none" else int(ticket), holds == "holds")


@dataclass(frozen=True)
class Claim:
    """A claim as it was when it was seen; its name, of two words, begins with its claimant."""

    holder: str
    since: str
    seconds: float
    """After so many without a renewal it is a dead one's."""
    sign: Sign = Sign()

    def __str__(self) -> str:
        return f"{self.holder}, since {self.since}"


class Claims:
    """The claims in a store, watched for signs of life by who asks again and again."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._seen: dict[str, tuple[Claim, float]] = {}
        self._renewed: set[str] = set()

    def note(self, name: str, claim: Claim) -> None:
        """Know a claim without reading it: one's own."""
        self._seen[name] = (claim, time.monotonic())

    def of(self, lease: str) -> dict[str, Claim]:
        """The claims to a lease, by name."""
        listed = [name.removeprefix(f"{lease}.") for name in self._store.sizes(FOLDER) if name.startswith(f"{lease}.")]
        signs: dict[str, Sign] = {}
        for name in listed:
            with suppress(ValueError):  # Not ours, whatever it is.
                maker, token, *sign = name.split(".", 2)
                claim, last = f"{maker}.{token}", Sign.read(sign[0]) if sign else Sign()
                signs[claim] = max(signs.get(claim, last), last, key=lambda one: one.renewal)
        found = {}
        for name in signs.keys() & set(listed):
            known_claim = self._seen[name][0] if name in self._seen else self._read(lease, name)
            if known_claim is None:
                continue  # Removed since it was listed.
            found[name] = replace(known_claim, sign=signs[name])
            if name not in self._seen or self._seen[name][0] != found[name]:
                self._renewed |= {name} if name in self._seen else set()
                self.note(name, found[name])
        return found

    def _read(self, lease: str, name: str) -> Claim | None:
        if (data := self._store.get_bytes(_key(lease, name))) is None:
            return None
        try:
            return Claim(**json.loads(data))
        except (ValueError, TypeError):
            return Claim("somebody whose claim cannot be read", "an unknown time", SECONDS)

    def is_dead(self, name: str) -> bool:
        """True if the claim was seen, and not renewed while it was watched, for as long as it says."""
        claim, since = self._seen.get(name, (None, 0.0))
        return claim is not None and time.monotonic() - since > claim.seconds

    def undecided(self) -> list[Claim]:
        """Those that were seen, and neither renewed since then nor watched long enough."""
        return [self._seen[name][0] for name in self._seen.keys() - self._renewed if not self.is_dead(name)]

    def forget(self) -> None:
        """Watch from the beginning: the store was away, and nobody could renew anything."""
        self._seen.clear()
        self._renewed.clear()


class Lease:
    """A lease that this process has, as long as nobody has taken it over.

    `CLAIMANT.NAME` gives the claim a name: what a dead one of this name has left running may go on, for its lease is
    there all the while. After `seconds` without a sign of life others may take it over.
    """

    def __init__(self, store: ObjectStore, name: str, claimant: str, seconds: float = SECONDS) -> None:
        self._store, self._lease = store, name
        self.claimant, _, self._token = claimant.partition(".")
        self.name = ""
        """Of the claim."""
        who = f"{_user()}@{socket.gethostname()}, process {os.getpid()}"
        self._claim = Claim(who, datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"), seconds)
        self._claims = Claims(store)
        self._renewed = 0.0
        self._shown: list[str] = []
        """The objects that are our signs of life; two, if one could not be removed."""
        self._over = Event()
        self._thread: Thread | None = None
        self.lost = False
        self.waited = False
        self._before = {self.claimant}

    @property
    def holder(self) -> str:
        """Who we are, for people."""
        return self._claim.holder

    def follows(self, claim: str) -> bool:
        """True if whoever made `claim` cannot have the lease any more: his claim was here, or its maker is our own."""
        return claim.partition(".")[0] in self._before

    @property
    def uri(self) -> str:
        """The address of the claim: while the object is there, the lease is ours."""
        return f"{self._store.uri}/{_key(self._lease, self.name)}"

    def check(self) -> None:
        """Raise `LeaseLost` if somebody has taken it over."""
        # Renewed less than that ago, it cannot have been taken for dead.
        if self._is_late:
            self._look()
        if self.lost:
            raise LeaseLost(
                f"This process did not renew its lease {without_secrets(self.uri)} for {self._claim.seconds:g} s, and\n"
                "another one has taken it over, with the run: was this one stopped, or its machine asleep? It ends.\n"
                "Run the same command again: it waits for the other one, and takes what that has made."
            )

    def acquire(self, on_wait: Callable[[str], None], wait: Callable[[float], None]) -> None:
        """Return when the lease is ours; see `hold_lease`. `waited` says whether somebody had it."""
        self._enter()
        while ahead := self._ahead():
            if not self.waited:
                on_wait(str(ahead))
                self.waited = True
            wait(min(POLL_SECONDS, self._claim.seconds / RENEWALS))
        self._claim = replace(self._claim, sign=replace(self._claim.sign, holds=True))
        self._thread = Thread(target=self._renew, name=f"lease {self._lease}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the next one have it at once; never raises, nor waits for a store that hangs."""
        self._over.set()
        if self._thread is None:
            self._thread = Thread(target=self._withdraw, daemon=True)
            self._thread.start()
        self._thread.join(SECONDS_TO_RELEASE)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self._renewed > self._claim.seconds

    def _enter(self) -> None:
        """Make a claim at the end of the queue."""
        self._withdraw()
        self.name = f"{self.claimant}.{self._token or secrets.token_hex(4)}"
        self._renewed = time.monotonic()
        said = {name: value for name, value in asdict(self._claim).items() if name != "sign"}
        self._store.put_bytes(_key(self._lease, self.name), json.dumps(said).encode())
        self._claims.note(self.name, self._claim)
        others, ours = self._seen()
        highest = max((other.sign.ticket or 0 for other in others.values()), default=-1)
        # Of the same name may have been that of a dead one, whose last sign must not outlive ours.
        renewal = max(self._claim.sign.renewal, ours.sign.renewal if ours else -1)
        self._claim = replace(self._claim, sign=Sign(renewal, highest + 1))
        if others:
            self._show_life()

    def _ahead(self) -> Claim | None:
        """Who comes before us; None: nobody, and our own claim is certain to be there."""
        if self._claim.sign.ticket == 0 and not self._is_late:
            return None
        try:
            if time.monotonic() - self._renewed > self._claim.seconds / RENEWALS:
                self._show_life()
            others, ours = self._seen()
        except ObjectStoreUnreachable as error:
            self._claims.forget()
            return replace(self._claim, holder=f"unknown, for the store does not answer ({error})")
        if ours is None or self._is_late:
            # Stopped so long that it was, or may be, removed.
            self._enter()
            return self._ahead()
        ahead = None
        for name, other in others.items():
            if self._claims.is_dead(name):
                # Waited for all the same until the next look: who lives after all may just have shown it.
                self._remove(name)
            place = other.sign.ticket
            if place is None or (place, name) < (self._claim.sign.ticket, self.name):
                ahead = other
        return ahead

    def _seen(self) -> tuple[Mapping[str, Claim], Claim | None]:
        """The claims of others, and ours, if it is there."""
        claims = self._claims.of(self._lease)
        ours = claims.pop(self.name, None)
        for name in list(claims):
            self._before.add(name.partition(".")[0])
            if name.startswith(f"{self.claimant}."):
                del claims[name]
                self._remove(name)
        return claims, ours

    def _show_life(self) -> None:
        started = time.monotonic()
        sign = replace(self._claim.sign, renewal=self._claim.sign.renewal + 1)
        self._claim = replace(self._claim, sign=sign)
        self._shown.append(_key(self._lease, self.name, sign))
        self._store.put_bytes(self._shown[-1], b"")
        self._renewed = started
        while len(self._shown) > 1:
            self._store.delete(self._shown[0])
            del self._shown[0]

    def _renew(self) -> None:
        while not self._over.is_set():
            try:
                self._look()
                if self.lost:
                    break
                self._show_life()
            except ObjectStoreError as error:
                LOGGER.warning("The lease %s could not be renewed: %s", self._lease, str(error).partition("\n")[0])
            self._over.wait(self._claim.seconds / RENEWALS)
        self._withdraw()

    def _look(self) -> None:
        self.lost = self.lost or self._store.get_bytes(_key(self._lease, self.name)) is None

    def _withdraw(self) -> None:
        # What cannot be removed is taken for dead in time.
        with suppress(ObjectStoreError):
            if self.name:
                self._remove(self.name)
            self._shown = []

    def _remove(self, name: str) -> None:
        """Remove the claim of a dead one, and then what is left of its signs."""
        claim = _key(self._lease, name)
        self._store.delete(claim)
        for other in self._store.sizes(FOLDER):
            if f"{FOLDER}/{other}".startswith(f"{claim}."):
                self._store.delete(f"{FOLDER}/{other}")


@contextmanager
def hold_lease(
    lease: Lease, on_wait: Callable[[str], None], wait: Callable[[float], None] = time.sleep
) -> Iterator[Lease]:
    """Hold the lease, whose claimant holds a lock of this machine for it already; wait for who has it.

    `on_wait` is told once who that is; `wait` waits some seconds, and gives up if it raises. Raises `ObjectStoreError`.
    """
    try:
        lease.acquire(on_wait, wait)
        yield lease
    finally:
        lease.release()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # A container's user may have no name.
        return f"user {os.getuid()}"


def _key(lease: str, claim: str, sign: Sign | None = None) -> str:
    return f"{FOLDER}/{lease}.{claim}" + (f".{sign}" if sign else "")
