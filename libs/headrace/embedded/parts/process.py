"""One program of the stack: start it, wait until it works, stop it, and leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from headrace.embedded.logs import trim
from headrace.runtime.children import bound_to_parent

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
KILL_POLLS = 100
TAIL_LINES = 15

# Ports that are looked for: below those that the kernel gives to outgoing connections, so that none of them
# takes a port between its choice and its use, or while its part restarts.
PORTS = range(20_000, 32_000)
# Of the ports that were asked for one by one, so many are held: each is in use long before it is let go.
MAX_CLAIMS = 256
_claims: deque[int] = deque()


class PartFailed(Exception):  # noqa: N818 - what happened, not what to call it
    """A part did not start, or not in time: what it said last, and what to do."""

    def __init__(self, name: str, what: str, log: Path | None, hint: str) -> None:
        self.name = name
        self.what = what
        self.log = log
        self.hint = hint
        super().__init__(f"{name} {what}")

    def report(self) -> str:
        """Several lines for a person: what happened, the log's end, where the log is, what to do."""
        lines = [f"{self.name} {self.what}."]
        if self.log is not None:
            lines += [*(f"  | {line}" for line in tail(self.log)), f"Its log: {self.log}"]
        return "\n".join([*lines, self.hint])


class Part:
    """A program. Subclasses say what to run (`command`, `environment`) and when it works (`ready`)."""

    name: str
    # What a person can do when it does not start.
    hint = "Is there enough memory and disk? `headrace up` again tries anew."
    start_seconds = 60.0
    stop_seconds = 10.0
    stop_signal = signal.SIGTERM
    # What the part gets when the supervisor dies without stopping it.
    orphan_signal = signal.SIGKILL
    # Another user's number, for programs that refuse to run as root.
    user: int | None = None

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder
        self.log = logs / f"{self.name}.log"
        self._process: asyncio.subprocess.Process | None = None

    def command(self) -> Sequence[str]:
        """The program and its arguments."""
        raise AssertionError(f"{type(self).__name__} does not say what to run")

    def environment(self) -> Mapping[str, str]:
        """Variables beside those of the supervisor."""
        return {}

    async def prepare(self) -> None:
        """Make what the program needs before it starts."""

    async def ready(self) -> bool:
        """Whether it does its work now. Errors of connecting count as no."""
        return True

    async def problem(self) -> str:
        """What keeps it from working now, for a person; empty where nothing does."""
        return "" if await self._is_ready() else "it does not answer"

    @property
    def notice(self) -> str:
        """What takes long before it starts this time, for a person who waits; empty where nothing does."""
        return ""

    @property
    def pid(self) -> int | None:
        """Process id; None when it is not running."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it and wait until it works. Raises PartFailed and nothing else; then nothing of it runs."""
        # An earlier run has ended: what goes wrong before there is a new one must not be laid to it.
        self._process = None
        try:
            await self._come_up()
        except BaseException:
            await self.stop()
            raise

    async def _come_up(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            await self.prepare()
            await self.launch()
            await self._wait_until_ready()
        except PartFailed:
            raise
        except Exception as error:
            # A full disk, a client library's own error: whatever it is, a person must be told and a part that
            # has run before must be tried again.
            raise self.failed(f"cannot start: {error!r}") from error

    async def launch(self) -> None:
        """Start the program, without waiting for it."""
        trim(self.log)
        self._process = await self._spawn(
            bound_to_parent(self.command(), death_signal=self.orphan_signal, user=self.user)
        )

    async def run_before(self, *command: str) -> None:
        """Run a program to its end, for `prepare`. Raises PartFailed where it fails."""
        process = await self._spawn(bound_to_parent(command, user=self.user))
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end_group(process)
            raise
        if code != 0:
            raise self.failed(f"cannot start: {Path(command[0]).name} ended with exit code {code}")

    async def _spawn(self, command: Sequence[str]) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                cwd=self.folder,
                # A session of its own: Ctrl-C reaches the supervisor, which stops parts in order.
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        assert self._process is not None, "not started"
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop it: politely, then, after `stop_seconds`, by force, with every process of its session."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            _signal_one(process.pid, self.stop_signal)
            try:
                async with asyncio.timeout(self.stop_seconds):
                    await process.wait()
            except TimeoutError:
                logger.warning("%s did not stop within %.0f s", self.name, self.stop_seconds)
        # Whatever it started is in its group, and must not outlive it.
        await _end_group(process)

    def kill(self) -> None:
        """Kill it at once, as a crash would."""
        if self.running and self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    async def _wait_until_ready(self) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(self.start_seconds):
                while not await self._is_ready():
                    if self._process.returncode is not None:
                        raise self.failed(f"ended with exit code {self._process.returncode} while it started")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise self.failed(f"did not work within {self.start_seconds:.0f} s") from None

    async def _is_ready(self) -> bool:
        try:
            return await self.ready()
        except OSError:
            return False

    def failed(self, what: str) -> PartFailed:
        """The error that says what happened to this part."""
        return PartFailed(self.name, what, self.log, self.hint)


def tail(log: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log file."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        return file.read().decode(errors="replace").splitlines()[-lines:]


def free_port() -> int:
    """A TCP port that is free on loopback, and that nobody else here gets before it is used."""
    for port in random.sample(PORTS, 200):
        claim = claim_port(port)
        if claim is not None:
            if len(_claims) == MAX_CLAIMS:
                os.close(_claims.popleft())
            # Only a number, since nobody ends this one: it goes with the process.
            _claims.append(claim.detach())
            return port
    raise OSError("no free port on 127.0.0.1")


def claim_port(port: int, host: str = "127.0.0.1") -> socket.socket | None:
    """What holds a free port until it is closed, against all that claim ports; None where it is not free.

    It is an abstract Unix socket with the port in its name: like the port it belongs to the network
    namespace, two processes cannot hold it at once, and it is gone when its process is.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0headrace-port-{port}")
        # Loopback too: whoever listens on all addresses has it, and some parts stay there.
        if is_free("127.0.0.1", port) and is_free(host, port):
            return claim
    except OSError:
        pass
    claim.close()
    return None


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers bind: a port that a closed connection still lingers on counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _signal_one(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


async def _end_group(leader: asyncio.subprocess.Process) -> None:
    """Kill a program with everything that it started, and wait until all of it is gone."""
    _signal_group(leader.pid, signal.SIGKILL)
    await leader.wait()
    # A killed process needs a moment for its memory, and is there until then.
    for _ in range(KILL_POLLS):
        if not _has_members(leader.pid):
            break
        await asyncio.sleep(POLL_SECONDS)


def _has_members(group: int) -> bool:
    """Whether a process of the group lives; one that is dead and not reaped does not."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (psutil.Error, ProcessLookupError):
            continue
    return False


async def tcp_answers(host: str, port: int) -> bool:
    """Whether something accepts connections there. Raises OSError where nothing does."""
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()
    return True


async def http_status(port: int, path: str) -> int:
    """The status of a GET on loopback. Raises OSError where nothing answers."""
    return (await http_get(port, path))[0]


async def http_get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a GET on loopback. Raises OSError where nothing answers."""
    return await _http("GET", port, path)


async def http_post(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a POST without a body on loopback. Raises OSError where nothing answers."""
    return await _http("POST", port, path)


async def _http(method: str, port: int, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        words = head.split(maxsplit=2)
        return (int(words[1]) if len(words) > 1 else 0), body
    finally:
        writer.close()


async def kafka_answers(bootstrap: str) -> bool:
    """Whether a broker answers with metadata. Raises OSError where nothing listens."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    await any_listens(bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except KafkaError:
        return False
    finally:
        await admin.close()


async def any_listens(bootstrap: str) -> None:
    """Raise OSError where none of HOST:PORT[,HOST:PORT...] accepts connections.

    For before a Kafka client is made: that would log each of its own attempts.
    """
    problem = OSError(f"{bootstrap!r} names no broker")
    for address in bootstrap.split(","):
        host, _, port = address.rpartition(":")
        try:
            await tcp_answers(host, int(port))
        except OSError as error:
            problem = error
        else:
            return
    raise problem
