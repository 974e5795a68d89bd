"""Each rank holds a line to rank 0, so that all hear at once which rank has died, whatever they are waiting in.

A collective over gloo fails when a process is gone, without its name; one over NCCL waits until its timeout. But the
kernel closes the line of a process that ends in any way. Rank 0 tells the others, and so does a rank that fails and can
still say why. A machine that vanishes closes nothing: keep-alive probes of TCP miss it after about a minute.
"""

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

GRACE_SECONDS = 5.0  # for the main thread to come to an end by itself
HEARSAY_SECONDS = 2.0  # between an error that a lost connection may have caused and the word of who was lost
CALL_SECONDS = 5.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


@dataclass(frozen=True)
class Loss:
    """A rank that ended before its time."""

    rank: int | None  # None: an unknown one
    reason: str = ""  # as it said itself; empty if it died without a word
    code: int = REQUEUE

    def told_to(self, rank: int) -> str:
        if self.reason:
            return f"rank {rank} ends because rank {self.rank} has failed ({self.reason}); see its output above"
        other = "another rank" if self.rank is None else f"rank {self.rank}"
        return (
            f"rank {rank} lost its connection to {other}: that process has died (killed, out of memory, or its machine "
            f"is gone); see its output above. Start again to go on from the last checkpoint"
        )


class PeerWatchdog:
    """Around a training run: `with PeerWatchdog() as line: ... line.tie(rank, world_size) ...`, on each rank.

    An exception inside is told to the other ranks before it goes on its way. When another rank is lost, the process
    ends within GRACE_SECONDS or so, with one message, and with the code of that rank or, if it died, REQUEUE.
    """

    def __init__(self) -> None:
        self.rank, self.loss = 0, None
        self._heard = threading.Event()
        self._leaving = self._watching = False
        self._lock = threading.Lock()
        self._token = ""
        self._lines: dict[socket.socket, int | None] = {}  # to whom; None before the other has said who it is
        self._buffers: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> "PeerWatchdog":
        return self

    def tie(self, rank: int, world_size: int) -> None:
        """Joins the ranks of the default process group by lines. Each rank must call it: it is collective."""
        self.rank = rank
        if world_size == 1:
            return
        from torch.distributed import broadcast_object_list

        listener = _listener() if rank == 0 else None
        where = [(_own_names(), listener.getsockname()[1], secrets.token_hex(16))] if listener else [None]
        broadcast_object_list(where, src=0, device="cpu")
        names, port, self._token = where[0]
        if listener:
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
        elif not self._call(names, port):
            print(f"rank {rank} cannot reach rank 0 at port {port} of {names}: if a rank dies, it will not hear "
                  f"which one", file=sys.stderr, flush=True)  # fmt: skip
            return
        self._watching = True
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._leaving = error is None or self.loss is None
        if error is None:
            self._tell({"bye": True})
            return
        if isinstance(error, RuntimeError | OSError):  # torch's errors of communication are RuntimeErrors
            # Not only while there are lines: the other thread drops one before it says whose it was.
            self._heard.wait(HEARSAY_SECONDS if self._watching else 0)
            if self.loss is None and re.search("onnection (closed|reset) by peer", str(error)):
                self.loss = Loss(None)
        if self.loss:
            print(self.loss.told_to(self.rank), file=sys.stderr, flush=True)
            self._leaving = False  # if leaving takes too long, the other thread ends the process
            exit_process(self.loss.code)
        first_line = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        code = BAD_INPUT if isinstance(error, BadInput) else 1
        self._tell(asdict(Loss(self.rank, first_line, code)))

    def _watch(self) -> None:
        while self.loss is None:
            for key, _ in self._selector.select():
                key.data(key.fileobj)
        self._heard.set()
        threading.Event().wait(GRACE_SECONDS)
        if not self._leaving:
            with suppress(OSError):
                print(self.loss.told_to(self.rank), file=sys.stderr, flush=True)
            os._exit(self.loss.code)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            line, _ = listener.accept()
            self._hold(line, None)

    def _call(self, names: list[str], port: int) -> bool:
        for name in names:
            try:
                line = socket.create_connection((name, port), timeout=CALL_SECONDS)
                line.sendall(_packed({"token": self._token, "rank": self.rank}))
                if line.recv(1) == b"\n":  # rank 0 greets with an empty line
                    self._hold(line, 0)
                    return True
            except OSError:
                continue
        return False

    def _hold(self, line: socket.socket, rank: int | None) -> None:
        line.settimeout(CALL_SECONDS)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        with self._lock:
            self._lines[line], self._buffers[line] = rank, b""
        self._selector.register(line, selectors.EVENT_READ, self._hear)

    def _hear(self, line: socket.socket) -> None:
        try:
            received = line.recv(65536)
        except TimeoutError:
            return
        except OSError:
            received = b""
        if not received:
            rank = self._drop(line)
            if rank is not None:
                self._lose(Loss(rank))
            return
        *messages, self._buffers[line] = (self._buffers[line] + received).split(b"\n")
        for message in filter(None, messages):
            if line in self._lines:
                try:
                    self._take(line, json.loads(message))
                except (ValueError, TypeError, KeyError, OSError):  # a stranger, or a line that has just gone
                    self._drop(line)

    def _take(self, line: socket.socket, message: dict) -> None:
        if "token" in message:
            if secrets.compare_digest(str(message["token"]), self._token):
                line.sendall(b"\n")
                with self._lock:
                    self._lines[line] = int(message["rank"])
            else:
                self._drop(line)
        elif self._lines[line] is None or "bye" in message:  # None: a stranger
            self._drop(line)
        else:
            self._lose(Loss(**message))

    def _drop(self, line: socket.socket) -> int | None:
        self._selector.unregister(line)
        with self._lock:
            rank = self._lines.pop(line, None)
            self._buffers.pop(line, None)
        line.close()
        return rank

    def _lose(self, loss: Loss) -> None:
        if self.loss is None:
            self.loss = loss
            if self.rank == 0:
                self._tell(asdict(loss))

    def _tell(self, message: dict) -> None:
        with self._lock:
            lines = [line for line, rank in self._lines.items() if rank is not None]
        for line in lines:
            with suppress(OSError):
                line.sendall(_packed(message))


def _packed(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _listener() -> socket.socket:
    with suppress(OSError):
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _own_names() -> list[str]:
    """Under which others may reach this machine: its address on the way to the meeting, the meeting's, its own name."""
    names = [os.environ["MASTER_ADDR"], socket.gethostname()]
    with suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(names[0], 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            names.insert(0, probe.getsockname()[0])
    return list(dict.fromkeys(names))
