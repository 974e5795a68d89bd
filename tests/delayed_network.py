"""Two commands in two network namespaces, joined by a cable on which each packet takes a given time.

The cable is a TUN device in each namespace. This process holds both and copies packets from one to the other, late. It
needs Linux, /dev/net/tun, and permission to make namespaces (root, or user namespaces), and no kernel module for
traffic control. A test skips itself where the kernel refuses.
"""

import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.78.0.1", "10.78.0.2")
DEVICE = "wire"
PORT = "29518"  # free in a namespace that is new
PACKET_BYTES = 65000  # large ones, since each costs a turn of a loop in Python

# Numbers of <linux/if.h>, <linux/if_tun.h> and <linux/sockios.h>.
TUNSETIFF, IFF_TUN, IFF_NO_PI, IFF_UP = 0x400454CA, 0x0001, 0x1000, 0x1
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922


@dataclass(frozen=True)
class Ended:
    """How a command has ended. `output` is what it wrote, errors included."""

    returncode: int
    output: str


def run_in_two_networks(
    commands: Sequence[Sequence[object]],
    delay_seconds: float,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> list[Ended]:
    """Runs two commands at the same time, each in a network of its own, and waits for both.

    Each finds variables as of torchrun in its environment, as one rank of two on a machine of its own: RANK, LOCAL_RANK
    0, WORLD_SIZE 2, MASTER_ADDR, MASTER_PORT, and GLOO_SOCKET_IFNAME.

    Args:
        commands: their words.
        delay_seconds: how long a packet takes from one to the other, in both directions.
        env: the environment, to which those variables are added; by default that of this process.
        timeout: in seconds; after it both are killed.

    Raises:
        AssertionError: a command has not ended in time.
    """
    assert len(commands) == 2
    folder = Path(tempfile.mkdtemp(prefix="ingot-networks-"))
    try:
        with _joined(commands, delay_seconds, folder, dict(os.environ if env is None else env)) as processes:
            end = time.monotonic() + timeout
            for process in processes:
                try:
                    process.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    raise AssertionError(f"not ended after {timeout:g} s\n{_outputs(folder)}") from None
            return [
                Ended(process.returncode, (folder / f"log-{side}").read_text())
                for side, process in enumerate(processes)
            ]
    finally:
        shutil.rmtree(folder)


@contextmanager
def _joined(
    commands: Sequence[Sequence[object]], delay_seconds: float, folder: Path, env: dict[str, str]
) -> Iterator[list[subprocess.Popen]]:
    processes: list[subprocess.Popen] = []
    devices: list[int] = []
    controls = []
    stop, cable = threading.Event(), None
    try:
        for side, command in enumerate(commands):
            here, there = socket.socketpair()
            controls.append(here)
            with there, (folder / f"log-{side}").open("w") as log:
                enter = ["unshare", "--map-root-user", "--net", sys.executable, __file__]
                try:
                    process = subprocess.Popen(
                        [*enter, str(there.fileno()), str(side), *map(str, command)],
                        env=env | _variables(side),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        pass_fds=[there.fileno()],
                        start_new_session=True,
                    )
                except OSError as error:
                    _skip(str(error))
                processes.append(process)
        for control in controls:
            control.settimeout(30)
            _, received, _, _ = socket.recv_fds(control, 1, 1)
            if not received:
                _skip(_outputs(folder).strip())
            devices += received
        cable = threading.Thread(target=_carry, args=(devices, delay_seconds, stop), daemon=True)
        cable.start()
        for control in controls:
            control.sendall(b"!")
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        stop.set()
        if cable:
            cable.join()
        for control in controls:
            control.close()
        for device in devices:
            os.close(device)


def _variables(side: int) -> dict[str, str]:
    return {
        "RANK": str(side),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": ADDRESSES[0],
        "MASTER_PORT": PORT,
        "GLOO_SOCKET_IFNAME": DEVICE,
    }


def _outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.iterdir()))


def _skip(reason: str) -> None:
    import pytest

    pytest.skip(f"two networks are not possible here: {reason}")


def _carry(devices: Sequence[int], delay_seconds: float, stop: threading.Event) -> None:
    """Copies packets between two TUN devices; each is sent on `delay_seconds` after it was read."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {device: deque() for device in devices}  # by where they go
    while not stop.is_set():
        first = min((queue[0][0] for queue in waiting.values() if queue), default=time.monotonic() + 0.1)
        readable, _, _ = select.select(devices, [], [], max(0.0, min(0.1, first - time.monotonic())))
        for source, target in (devices, devices[::-1]):
            if source in readable:
                with suppress(OSError):  # the device is gone: its namespace has ended
                    waiting[target].append((time.monotonic() + delay_seconds, os.read(source, PACKET_BYTES + 100)))
        for target, queue in waiting.items():
            while queue and queue[0][0] <= time.monotonic():
                with suppress(OSError):  # lost, as in any network; TCP sends it again
                    os.write(target, queue.popleft()[1])


def _enter(control: int, side: int, command: Sequence[str]) -> None:
    """In a new network namespace: makes the device, hands it over, and becomes the command."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, _request(struct.pack("=H", IFF_TUN | IFF_NO_PI)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for number, value in (
            (SIOCSIFADDR, _address(ADDRESSES[side])),
            (SIOCSIFNETMASK, _address("255.255.255.0")),
            (SIOCSIFMTU, struct.pack("=i", PACKET_BYTES)),
            (SIOCSIFFLAGS, struct.pack("=H", IFF_UP)),
        ):
            fcntl.ioctl(any_socket, number, _request(value))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, _request(struct.pack("=H", IFF_UP), "lo"))
    with socket.socket(fileno=control) as parent:
        socket.send_fds(parent, [b"!"], [device])
        if not parent.recv(1):
            sys.exit("the other network was not made")
    os.close(device)
    os.execvp(command[0], command)


def _request(value: bytes, device: str = DEVICE) -> bytes:
    """A `struct ifreq`: the name of a device, and a value."""
    return struct.pack("=16s24s", device.encode(), value)


def _address(dotted: str) -> bytes:
    """A `struct sockaddr_in`."""
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(dotted))


if __name__ == "__main__":
    try:
        _enter(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    except OSError as error:
        sys.exit(str(error))
