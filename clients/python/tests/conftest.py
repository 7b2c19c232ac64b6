"""A server of the tests' own, and a line to it that can be cut."""

import contextlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

BINARY = Path(__file__).resolve().parents[3] / "target/debug/candlewick"


def pytest_addoption(parser: pytest.Parser) -> None:
    """--candlewick says which binary serves."""
    parser.addoption("--candlewick", default=os.environ.get("CANDLEWICK_BINARY", str(BINARY)), help="the server's binary")


@pytest.fixture(scope="session")
def address(pytestconfig: pytest.Config) -> Iterator[str]:
    """Where a server with the built-in model listens."""
    with served(pytestconfig) as address:
        yield address


@contextlib.contextmanager
def served(pytestconfig: pytest.Config, *flags: str) -> Iterator[str]:
    """A server with the built-in model and these flags, for a while."""
    binary = pytestconfig.getoption("--candlewick")
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--threads", "1", "--num-gpu-blocks-override", "512", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    found = next((line for line in server.stdout if "127.0.0.1:" in line), "")
    listens = re.search(r"127\.0\.0\.1:\d+", found)
    assert listens, "the server did not come up"
    # What it says later must not fill the pipe.
    threading.Thread(target=server.stdout.read, daemon=True).start()
    yield listens[0]
    server.terminate()
    server.wait(60)


#: Of `Cable.allowance`: enough for a stream's first delta, less than half of a long stream.
SOME = 4096


class Cable:
    """A listener that hands bytes on to a server, and can be cut, deaf for a while, or unplugged."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        #: Whether what the client says is swallowed.
        self.deaf = False
        #: Bytes that the server may say on a connection before the line holds back the rest: what is cut then is cut in
        #: the middle, however fast the server and however slow the client.
        self.allowance: int | None = None
        self._held = threading.Event()
        #: Connections that are closed as soon as they are there.
        self.refuse = 0
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Breaks every connection; new ones work, and are heard."""
        with self._lock:
            ends, self._ends, self.deaf, self.allowance = self._ends, [], False, None
            held, self._held = self._held, threading.Event()
        for end in ends:
            _hang_up(end)
        held.set()

    def close(self) -> None:
        """No more connections."""
        # Closing alone would leave the thread that accepts one more.
        _hang_up(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.refuse > 0:
                self.refuse -= 1
                _hang_up(client)
                continue
            server = socket.create_connection(self._server)
            with self._lock:
                self._ends += [client, server]
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed, held = 0, self._held
        try:
            while data := source.recv(512):
                if not up and self.allowance is not None and passed >= self.allowance:
                    held.wait()
                    break
                passed += len(data)
                if not (up and self.deaf):
                    sink.sendall(data)
        except OSError:
            pass
        _hang_up(source)
        _hang_up(sink)


def _hang_up(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()


@pytest.fixture
def cable(address: str) -> Iterator[Cable]:
    """A line to the server."""
    cable = Cable(address)
    yield cable
    cable.close()
