"""Where the ranks of a launch meet before anything is built: one verdict for all of them. Floor 4.

A rank that finds something wrong must not leave the others waiting in a collective. So every rank
says to one store what it runs and what it complains of; rank 0 reads all of it and answers once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

from nl.config import ConfigError, flat
from nl.dist.env import number, spread

PATIENCE = 300.0
"""Seconds that ranks wait for one another to be started."""
ANSWER = 3.0
"""Seconds that the store may take to answer."""
GRACE = 3.0
"""Seconds that further complaints may take once there is one."""
_POLL = 0.02


class LaunchError(ConfigError):
    """A complaint that every rank of the launch has heard; one of them tells it."""

    def __init__(self, text: str, teller: bool) -> None:
        super().__init__(text)
        self.teller = teller


class UnmetError(ConfigError):
    """The ranks cannot meet, so that this rank's complaint is its own."""


class Meeting:
    """The store that the ranks of this launch share.

    Args:
        store: every rank reads and writes it.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self._rounds = 0

    def agree(self, fact: str = "", complaint: str | None = None) -> None:
        """One round: every rank brings its fact and its complaint, all get the same verdict.

        Args:
            fact: has to be the same on every rank; JSON of a mapping where the message is to
                name what differs.
            complaint: why this rank cannot go on.

        Raises:
            LaunchError: on every rank, where any rank complained, was missing or differs.
        """
        self._rounds += 1
        here = f"nl/{self._rounds}"
        digest = hashlib.sha256(fact.encode()).hexdigest()
        self._put(f"{here}/fact/{self.rank}", fact)
        self._put(f"{here}/{self.rank}", json.dumps([digest, complaint]))
        if self.rank == 0:
            self._put(f"{here}/verdict", self._judge(here, digest))
        verdict = self._get(f"{here}/verdict")
        if verdict:
            self._leave(here)
            raise LaunchError(verdict, self.rank == 0)

    def fail(self, text: str) -> None:
        """Leave word for the others why this rank ends; nobody is waited for."""
        with contextlib.suppress(RuntimeError):
            if not self.store.check(["nl/failed"]):
                self._put("nl/failed", f"rank {self.rank}: {text}")

    def failed(self) -> str:
        """The word of the first rank that failed, empty where none did or it cannot be known."""
        with contextlib.suppress(RuntimeError):
            if self.store.check(["nl/failed"]):
                return self._get("nl/failed")
        return ""

    def _judge(self, here: str, digest: str) -> str:
        """Rank 0: read what the others say as it comes in; empty where all is well."""
        complaints: dict[int, str] = {}
        other: list[int] = []
        waiting = set(range(self.world))
        end = time.monotonic() + PATIENCE
        while waiting and time.monotonic() < end:
            for rank in sorted(waiting):
                if self.store.check([f"{here}/{rank}"]):
                    waiting.remove(rank)
                    theirs, complaint = json.loads(self._get(f"{here}/{rank}"))
                    if complaint is not None:
                        complaints[rank] = complaint
                        end = min(end, time.monotonic() + GRACE)
                    elif theirs != digest:
                        other.append(rank)
            time.sleep(_POLL)
        if complaints:
            return together(complaints, self.world)
        if waiting:
            return (
                f"{ranks_text(sorted(waiting))} of {self.world} did not come within "
                f"{PATIENCE:.0f} s; start every process that WORLD_SIZE={self.world} promises "
                "(under Slurm: start with srun)."
            )
        return self._difference(here, other) if other else ""

    def _difference(self, here: str, other: list[int]) -> str:
        ours, theirs = (self._get(f"{here}/fact/{rank}") for rank in (0, other[0]))
        keys = _differing(ours, theirs)
        return (
            f"{ranks_text(other)} started with another configuration than rank 0; start every rank "
            f"with the same files and overrides. {keys}"
        )

    def _put(self, key: str, text: str) -> None:
        self.store.set(key, text)

    def _get(self, key: str) -> str:
        return self.store.get(key).decode()

    def _leave(self, here: str) -> None:
        """Whoever holds the store goes last, or the others would not hear the verdict."""
        with contextlib.suppress(RuntimeError):
            self.store.add(f"{here}/left", 1)
            end = time.monotonic() + GRACE
            while self.rank == 0 and time.monotonic() < end:
                if self.store.add(f"{here}/left", 0) >= self.world:
                    return
                time.sleep(_POLL)


_current: list[Meeting] = []


def meet() -> Meeting | None:
    """The meeting of this launch, joined at the first call; None where one process is alone.

    Raises:
        UnmetError: the port is taken, or nobody answers at the address.
    """
    if not _current:
        place = spread()
        if place is None:
            return None
        try:
            _current.append(Meeting(_store(*place), *place))
        except ConfigError as error:
            raise UnmetError(str(error)) from error
    return _current[0]


def met() -> Meeting | None:
    """The meeting, if this process has joined it."""
    return _current[0] if _current else None


def forget() -> None:
    """Forget the meeting (a process that launches again meets again)."""
    _current.clear()


@contextlib.contextmanager
def agreeing(meeting: Meeting | None, fact: Callable[[], str] = str) -> Iterator[None]:
    """What is done inside either succeeds on every rank or is refused on every rank.

    Args:
        meeting: of the launch; None: this process is alone.
        fact: called after the body; what it returns has to be equal on every rank.

    Raises:
        LaunchError: on every rank, where the body raised ``ConfigError`` on any.
    """
    if meeting is None:
        yield
        return
    try:
        yield
        ours = fact()
    except ConfigError as error:
        meeting.agree(complaint=str(error))
    except Exception as error:
        with contextlib.suppress(LaunchError):
            meeting.agree(complaint=f"{type(error).__name__}: {error}")
        raise
    else:
        meeting.agree(ours)


@contextlib.contextmanager
def naming_rank() -> Iterator[None]:
    """Give an error that ends this rank its number, and the word of the rank that failed first."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        meeting = met()
        if meeting is not None:
            earlier = meeting.failed()
            meeting.fail(f"{type(error).__name__}: {error}")
            error.add_note(f"This was rank {meeting.rank} of {meeting.world}.")
            if earlier:
                error.add_note(f"The first to fail was {earlier}")
        raise


def tell(text: str, error: Exception) -> None:
    """Say a complaint on stderr: once for what all ranks agreed on, else with this rank's number.

    A rank that fails before it has met the others (its command line is wrong) still goes and
    tells them.
    """
    meeting = met()
    if isinstance(error, LaunchError):
        text = text if error.teller else ""
    elif meeting is not None:
        meeting.fail(text)
        text = f"rank {meeting.rank}: {text}"
    elif "RANK" in os.environ and not isinstance(error, UnmetError):
        text = _tell_others(text)
    if text:
        sys.stderr.write(f"{text}\n")


def _tell_others(text: str) -> str:
    """What is left to say on this rank."""
    try:
        meeting = meet()
        if meeting is not None:
            meeting.agree(complaint=text)
    except LaunchError as heard:
        return str(heard) if heard.teller else ""
    except ConfigError:
        return text
    return text


def _store(rank: int, world: int) -> Store:
    """The launcher's store, or one that rank 0 opens at MASTER_ADDR:MASTER_PORT."""
    host, port = os.environ.get("MASTER_ADDR", ""), number("MASTER_PORT", 0)
    if not host or not 0 < port < 2**16:
        raise ConfigError(
            f"MASTER_ADDR={host!r}, MASTER_PORT={port}; WORLD_SIZE={world} needs the address and "
            "port (1 to 65535) of rank 0. torchrun and deepspeed set both."
        )
    owner = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    end = time.monotonic() + PATIENCE
    while not owner and not _listens(host, port) and time.monotonic() < end:
        time.sleep(5 * _POLL)  # rank 0 may still be starting; torch's own waiting is noisy
    found: list[TCPStore | Exception] = []
    ask = partial(_ask, found, host, port, world, owner)
    asking = threading.Thread(target=ask, daemon=True)  # torch may wait for an answer for ever
    asking.start()
    asking.join(2 * ANSWER)
    if not found:
        raise ConfigError(
            f"MASTER_PORT={port}: something else than rank 0 of this launch answers at {host}; "
            "choose another port (torchrun and deepspeed: --master_port)."
        )
    if isinstance(found[0], Exception):
        raise _complaint(found[0], host, port) from found[0]
    return found[0]


def _ask(found: list[Any], host: str, port: int, world: int, owner: bool) -> None:
    try:
        store = TCPStore(
            host,
            port,
            world,
            is_master=owner,
            timeout=timedelta(seconds=ANSWER),
            wait_for_workers=False,
            multi_tenant=True,
        )
        store.set_timeout(timedelta(seconds=PATIENCE + 2 * GRACE))
        found.append(store)
    except RuntimeError as error:
        found.append(error)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _complaint(error: Exception, host: str, port: int) -> ConfigError:
    if "EADDRINUSE" in str(error):
        return ConfigError(
            f"MASTER_PORT={port}: in use on this machine; choose another one (torchrun and "
            "deepspeed: --master_port) or end what holds it."
        )
    reason = str(error).partition("\n")[0]
    return ConfigError(
        f"MASTER_ADDR={host}, MASTER_PORT={port}: rank 0 did not come within {PATIENCE:.0f} s "
        f"({reason}); was it started, and can this machine reach it?"
    )


def ranks_text(ranks: list[int]) -> str:
    """``rank 3`` or ``ranks 1, 3``; long lists are cut."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def together(complaints: dict[int, str], world: int) -> str:
    """Complaints of ranks as one text; what all of them say is said once, without ranks."""
    by_text: dict[str, list[int]] = {}
    for rank in sorted(complaints):
        by_text.setdefault(complaints[rank], []).append(rank)
    if len(by_text) == 1 and len(complaints) == world:
        return next(iter(by_text))
    return "\n".join(f"{ranks_text(ranks)}: {text}" for text, ranks in by_text.items())


def _differing(ours: str, theirs: str) -> str:
    try:
        old, new = (flat(json.loads(text)) for text in (ours, theirs))
    except ValueError:
        return ""
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    shown = [f"{key} ({old.get(key)!r}, {new.get(key)!r})" for key in keys[:5]]
    return f"They differ in {', '.join(shown)}." if shown else ""
