"""A Python package as a model: its steps run in a process and an environment of its own, behind a pipe.

The archive holds the package's source, `headrace.json` with the names of its steps, and `requirements.txt`,
in which each requirement has its hashes. Environments are built by uv from the index that the machine is set
up for, and shared by all versions with the same requirements.
"""

import hashlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from model_files import Ended
from package_pipe import PIPE_BYTES, Closed, Pipe, widened
from shelf import Shelf

# Where packages are unpacked and their environments are.
FOLDER_VARIABLE = "HEADRACE_PACKAGES_PATH"
MANIFEST = "headrace.json"
REQUIREMENTS = "requirements.txt"
# A version that comes back finds its environment; uv's cache keeps the downloads of others.
SPARE = 4
# Beyond the last caller's patience, whoever still computes hangs.
GRACE_SECONDS = 10.0
# A worker that has been told to end, and what it said last.
END_SECONDS = 2.0

# It is told nothing of where the platform's parts are.
_ENVIRONMENT = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES"),
    "HEADRACE_MODEL_MEMORY_BYTES",
)
# As of other formats: many small requests, and threads of one only get in each other's way.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# Of what a worker prints, so much of each minute is logged.
LOGGED_BYTES = 64 << 10
LOGGED_SECONDS = 60.0
# Reading more seldom than a worker prints, in large pieces, leaves the processor to the answers.
PRINT_SECONDS = 0.01
LONGEST_LINE = 2000


class Package:
    """A package's steps as a function of arrays."""

    sizes = (1, 2)

    def __init__(self, path, _inputs, outputs, until):
        """`until`, of the monotonic clock: when the steps must be there. Raises what is wrong."""
        self._outputs = outputs
        self._locks = []
        self._worker = None
        try:
            self._start(Path(path), until)
        except BaseException:
            self.close()
            raise

    def __call__(self, inputs, wanted):
        """Raises ValueError for what a step says, and Ended."""
        rows = len(next(iter(inputs.values())))
        try:
            self._pipe.send({}, inputs, self._patience(wanted))
            document, answers = self._pipe.receive(self._patience(wanted))
        except Closed:
            raise self._ended() from None
        except Ended:
            raise
        except Exception as error:
            # No memory for an answer, or what is none: whatever comes next would be half of something.
            raise Ended(f"its process is not understood any more: {error!r}") from error
        if "failure" in document:
            raise ValueError(document["failure"])
        for name in self._outputs:
            if name not in answers:
                raise ValueError(f"its steps answer {', '.join(answers) or 'nothing'}, and no {name}")
            if answers[name].shape[:1] != (rows,):
                raise ValueError(f"its output {name} is {answers[name].shape} for {rows} rows")
        return answers

    def close(self):
        """End the worker, and let its folders go."""
        if self._worker is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait()
            self._words.close()
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._worker = None
        while self._locks:
            os.close(self._locks.pop())

    def _start(self, path, until):
        root = os.environ.get(FOLDER_VARIABLE, "")
        if not root:
            raise ValueError(f"{FOLDER_VARIABLE} does not tell Triton in which folder to unpack packages")
        with path.open("rb") as archive:
            digest = hashlib.file_digest(archive, "sha256").hexdigest()
        folder = self._take(Path(root, "sources"), digest, path, partial(_unpack, path))
        if not (folder / MANIFEST).exists():
            raise ValueError(f"its archive has no {MANIFEST}, which `headrace model import` writes into it")
        requirements = folder / REQUIREMENTS
        key = _environment_key(requirements)
        environment = self._take(Path(root, "environments"), key, path, partial(_build, requirements, until))
        self._run(environment, folder, f"{path.parent.parent.name} {path.parent.name}")
        try:
            document, _ = self._pipe.receive(self._patience(lambda: time.monotonic() < until))
        except Closed:
            raise self._ended() from None
        if "failure" in document:
            raise ValueError(document["failure"])

    def _take(self, root, key, path, fill):
        shelf = Shelf(root, spare=SPARE)
        # The archive lies in the model repository while its version is served, also while Triton restarts.
        folder, lock = shelf.take(key, path.resolve(), fill)
        self._locks.append(lock)
        shelf.tidy()
        return folder

    def _run(self, environment, folder, name):
        """Start the worker; the pipes are other descriptors than those that steps may print to."""
        (to_read, questions), (answers, to_write), (words, printed) = os.pipe(), os.pipe(), os.pipe()
        worker = (_beside("package_worker.py"), to_read, to_write, folder)
        self._worker = subprocess.Popen(
            bound([environment / "bin" / "python", "-I", *worker]),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            pass_fds=(to_read, to_write),
            cwd=folder,
            env={variable: os.environ[variable] for variable in _ENVIRONMENT if variable in os.environ}
            | _ONE_THREAD,
            # Whatever it starts ends with it.
            start_new_session=True,
        )
        for descriptor in (to_read, to_write, printed):
            os.close(descriptor)
        for descriptor in (questions, answers):
            os.set_blocking(widened(descriptor), False)
        self._descriptors = (questions, answers)
        self._pipe = Pipe(answers, questions)
        self._words = Words(words, name)

    def _patience(self, wanted):
        """What the pipe calls while the worker says nothing: raises Ended where that is for ever."""
        left = math.inf

        def wait():
            nonlocal left
            if self._worker.poll() is not None:
                raise self._ended()
            if wanted():
                left = math.inf
                return
            left = min(left, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > left:
                os.killpg(self._worker.pid, signal.SIGKILL)
                raise Ended("its process hung, and was ended: nobody waited for its answer any more")

        return wait

    def _ended(self):
        with suppress(subprocess.TimeoutExpired):
            self._worker.wait(END_SECONDS)
        last = self._words.last()
        said = f"; its last words: {last}" if last else ""
        return Ended(f"its process ended with {_status(self._worker.poll())}{said}")


class Words:
    """What a worker prints, line by line into this process's own log, and so much a minute at most."""

    def __init__(self, descriptor, name):
        self._descriptor = descriptor
        self._name = name
        self._last = b""
        self._left = LOGGED_BYTES
        self._omitted = 0
        self._anew = time.monotonic() + LOGGED_SECONDS
        self._thread = threading.Thread(target=self._run, name="a package's words", daemon=True)
        self._thread.start()

    def last(self):
        """The last line of a worker that has ended."""
        self._thread.join(END_SECONDS)
        lines = self._last.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self):
        """Log what has come; programs that a worker left behind may go on printing, for nobody."""
        self._thread.join(END_SECONDS)

    def _run(self):
        widened(self._descriptor)
        line = b""
        with os.fdopen(self._descriptor, "rb", buffering=0):
            while data := os.read(self._descriptor, PIPE_BYTES):
                self._last = (self._last + data)[-LONGEST_LINE:]
                *lines, line = (line + data[: self._left]).split(b"\n")
                self._omitted += max(0, len(data) - self._left)
                self._left = max(0, self._left - len(data))
                for whole in lines:
                    self._log(whole)
                if len(line) > LONGEST_LINE:
                    self._log(line)
                    line = b""
                self._begin_anew()
                time.sleep(PRINT_SECONDS)
        self._log(line)
        self._say_what_was_omitted()

    def _begin_anew(self):
        if time.monotonic() > self._anew:
            self._say_what_was_omitted()
            self._left, self._omitted = LOGGED_BYTES, 0
            self._anew = time.monotonic() + LOGGED_SECONDS

    def _say_what_was_omitted(self):
        if self._omitted:
            self._log(f"... and {self._omitted} bytes more, which are not logged".encode())

    def _log(self, line):
        if line.strip():
            print(f"{self._name}: {line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)


def bound(command):
    """The command that runs `command` so that it ends with this process."""
    return [str(part) for part in (sys.executable, "-I", "-S", _beside("bound.py"), os.getpid(), *command)]


def _beside(name):
    return Path(__file__).with_name(name)


def _status(code):
    if code is None:
        return "its pipe closed"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _unpack(path, folder, _lock):
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise ValueError(f"its file is no archive of a package: {error}") from None


def _environment_key(requirements):
    """What an environment depends on: requirements, this Python, and the numpy for those that name none."""
    python = (sys.version, sys.executable, np.__version__, np.__file__)
    digest = hashlib.sha256("\n".join(python).encode())
    digest.update(requirements.read_bytes() if requirements.exists() else b"")
    return digest.hexdigest()


def _build(requirements, until, folder, lock):
    """Fill an environment. Wheels alone: what is built from source would run tools that nobody has locked."""
    _uv(lock, until, "venv", "--no-python-downloads", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    if requirements.exists() and requirements.read_text(encoding="utf-8").strip():
        options = ("--require-hashes", "--no-build", "--python", python)
        _uv(lock, until, "pip", "install", *options, "--requirements", requirements)
    [site] = folder.glob("lib/python*/site-packages")
    if not (site / "numpy").exists():
        # Arrays come in some numpy: whoever asks for none has this one.
        own = Path(np.__file__).parent
        for part in (own, own.with_name("numpy.libs")):
            if part.exists():
                (site / part.name).symlink_to(part)


def _uv(lock, until, *arguments):
    """Run uv. It holds the lock of what it fills while it lives. Raises ValueError with uv's own reason."""
    program = shutil.which("uv")
    if program is None:
        raise ValueError("there is no uv beside Triton, which builds the environments of packages")
    # Of Triton's: uv and the interpreters that it asks are to see nothing of its packages.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")
    }
    try:
        ended = subprocess.run(
            bound([program, "--quiet", "--color", "never", *arguments]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            pass_fds=(lock,),
            env=environment,
            timeout=max(0.0, until - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            "its environment was not built in time; what was downloaded is kept for the next try"
        ) from None
    if ended.returncode:
        print(ended.stderr, file=sys.stderr, flush=True)
        words = " ".join(re.sub("[×╰─▶│├]", " ", ended.stderr).removeprefix("error: ").split())
        raise ValueError(f"its environment cannot be built: {words or _status(ended.returncode)}")
