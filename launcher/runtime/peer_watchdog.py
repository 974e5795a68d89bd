"""Ranks keep connections to each other, as a tree, so that all learn at once which rank has died.

When a process is gone, a collective over gloo fails and does not name it, and one over NCCL waits until its timeout.
But the kernel closes the connections of a process that ends in any way. The ranks next to it in the tree then tell
their other neighbours, and so on. A rank that fails with an exception tells them why. A machine that vanishes closes
nothing: TCP's keep-alive probes notice that after about a minute.

Rank r is below rank (r - 1) // 32, so that no rank holds more than 33 connections, and 1,024 ranks are two below rank 0
at most.
"""

import datetime
import json
import os
import re
import secrets
import selectors
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass

from ingot.launcher.runtime.exit_codes import BAD_INPUT, REQUEUE, BadInput, exit_process
from ingot.parallel.open_files import CHILDREN

GRACE_SECONDS = 5.0  # the main thread has so long to end the process
REPORT_SECONDS = 2.0  # an error waits so long for the report of which rank was lost
CLOSED_SECONDS = 10.0  # the same for an error that says that a connection was closed
CALL_SECONDS = 10.0
MEET_SECONDS = 60.0  # a rank waits so long until the one above it listens
CLOSED = "onnection (closed|reset) by peer"
KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


@dataclass(frozen=True)
class LostRank:
    """A rank that ended too early.

    Attributes:
        rank: None if it is not known.
        reason: the first connection of its exception; empty if its process died.
        code: the exit code for the other ranks.
    """

    rank: int | None
    reason: str = ""
    code: int = REQUEUE

    def message_for(self, rank: int) -> str:
        """What another rank prints."""
        if self.reason:
            return f"rank {rank} ends because rank {self.rank} has failed ({self.reason}); see its output above"
        other = "another rank" if self.rank is None else f"rank {self.rank}"
        return (
            f"rank {rank} lost its connection to {other}: that process has died (killed, out of memory, or its machine "
            f"is gone); see its output above. Start the run again to continue from the last checkpoint"
        )


class PeerWatchdog:
    """A context manager around a training run, on each rank. `connect` starts the watching.

    An exception inside is reported to the other ranks before it is raised further. When another rank is lost, the
    process prints one message and ends, at the latest GRACE_SECONDS later. Its exit code is that of the lost rank, or
    REQUEUE if the process of that rank died.
    """

    def __init__(self) -> None:
        self.rank = 0
        self.lost: LostRank | None = None
        self._reported = threading.Event()  # that a rank is lost
        self._leaving = self._watching = False
        self._lock = threading.Lock()
        self._token = secrets.token_hex(16)
        self._ranks: dict[socket.socket, int | None] = {}  # of each connection; None until the peer has named its rank
        self._buffers: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> "PeerWatchdog":
        return self

    def connect(self, rank: int, world_size: int, children: int = CHILDREN) -> None:
        """Connects the ranks of the default process group. Each rank must call it.

        Args:
            children: how many ranks are directly below a rank.
        """
        self.rank = rank
        if world_size == 1:
            return
        from torch.distributed import PrefixStore

        from ingot.parallel.torch_compat import default_store

        store = PrefixStore("watchdog", default_store())
        if rank * children + 1 < world_size:
            listener = _listener()
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
            store.set(str(rank), json.dumps([_own_names(), listener.getsockname()[1], self._token]))
        self._watching = True
        threading.Thread(target=self._watch, daemon=True).start()
        if rank == 0:
            return
        for above in ranks_above(rank, children):  # those further up if the first cannot be reached
            try:
                store.wait([str(above)], datetime.timedelta(seconds=MEET_SECONDS))
                if self._call(above, *json.loads(store.get(str(above)))):
                    return
            except RuntimeError:  # of the store: that rank does not listen
                continue
        print(
            f"rank {rank} cannot reach rank {above}, nor others above it: if a rank dies, this rank and those that "
            f"depend on it may not learn which one",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._leaving = error is None or self.lost is None
        if error is None:
            self._send({"bye": True})
            return
        if isinstance(error, RuntimeError | OSError):  # torch's errors of communication are RuntimeErrors
            # Also without open connections: the watching thread closes one before it reports whose it was.
            is_closed = re.search(CLOSED, str(error))
            self._reported.wait((CLOSED_SECONDS if is_closed else REPORT_SECONDS) if self._watching else 0)
            if self.lost is None and is_closed:
                self.lost = LostRank(None)
                self._send(asdict(self.lost))  # the others must not take this rank for the lost one
        if self.lost:
            print(self.lost.message_for(self.rank), file=sys.stderr, flush=True)
            self._leaving = False  # if the exit takes too long, the watching thread ends the process
            exit_process(self.lost.code)
        first_line = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        code = BAD_INPUT if isinstance(error, BadInput) else 1
        self._send(asdict(LostRank(self.rank, first_line, code)))

    def _watch(self) -> None:
        while self.lost is None:
            for key, _ in self._selector.select():
                key.data(key.fileobj)
        self._reported.set()
        threading.Event().wait(GRACE_SECONDS)
        if not self._leaving:
            with suppress(OSError):
                print(self.lost.message_for(self.rank), file=sys.stderr, flush=True)
            os._exit(self.lost.code)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            self._add(connection, None)

    def _call(self, rank: int, names: list[str], port: int, token: str) -> bool:
        """Connects to the rank that listens there, if it does."""
        for name in names:
            try:
                connection = socket.create_connection((name, port), timeout=CALL_SECONDS)
                connection.sendall(_packed({"token": token, "rank": self.rank}))
                if connection.recv(1) == b"\n":  # it answers with an empty line
                    self._add(connection, rank)
                    return True
            except OSError:
                continue
        return False

    def _add(self, connection: socket.socket, rank: int | None) -> None:
        connection.settimeout(CALL_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        with self._lock:
            self._ranks[connection], self._buffers[connection] = rank, b""
        self._selector.register(connection, selectors.EVENT_READ, self._receive)

    def _receive(self, connection: socket.socket) -> None:
        try:
            received = connection.recv(65536)
        except TimeoutError:
            return
        except OSError:
            received = b""
        if not received:
            rank = self._close(connection)
            if rank is not None:
                self._lose(LostRank(rank))
            return
        *messages, self._buffers[connection] = (self._buffers[connection] + received).split(b"\n")
        for message in filter(None, messages):
            if connection in self._ranks:
                try:
                    self._handle(connection, json.loads(message))
                except (ValueError, TypeError, KeyError, OSError):  # another program, or a peer that just ended
                    self._close(connection)

    def _handle(self, connection: socket.socket, message: dict) -> None:
        if "token" in message:
            if secrets.compare_digest(str(message["token"]), self._token):
                connection.sendall(b"\n")
                with self._lock:
                    self._ranks[connection] = int(message["rank"])
            else:
                self._close(connection)
        elif self._ranks[connection] is None or "bye" in message:  # None: another program
            self._close(connection)
        else:
            self._lose(LostRank(**message))

    def _close(self, connection: socket.socket) -> int | None:
        self._selector.unregister(connection)
        with self._lock:
            rank = self._ranks.pop(connection, None)
            self._buffers.pop(connection, None)
        connection.close()
        return rank

    def _lose(self, lost: LostRank) -> None:
        if self.lost is None:
            self.lost = lost
            self._send(asdict(lost))

    def _send(self, message: dict) -> None:
        with self._lock:
            connections = [connection for connection, rank in self._ranks.items() if rank is not None]
        for connection in connections:
            with suppress(OSError):
                connection.sendall(_packed(message))


def ranks_above(rank: int, children: int = CHILDREN) -> list[int]:
    """The ranks above a rank in the tree, up to rank 0, the next one first."""
    above = []
    while rank:
        rank = (rank - 1) // children
        above.append(rank)
    return above


def _packed(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _listener() -> socket.socket:
    with suppress(OSError):
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _own_names() -> list[str]:
    """Names under which other machines may reach this one, the best first.

    They are the address of its interface towards MASTER_ADDR, MASTER_ADDR itself (right for ranks on rank 0's machine),
    and its host name.
    """
    names = [os.environ["MASTER_ADDR"], socket.gethostname()]
    with suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(names[0], 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            names.insert(0, probe.getsockname()[0])
    return list(dict.fromkeys(names))
