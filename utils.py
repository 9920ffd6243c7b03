# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Small helpers with no better home: refusals and exit codes, command lines, logging, atomic files, meters."""
import argparse
import contextlib
import difflib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence

# What a caller of the command lines can rely on; 128 + n stands for an unhandled signal n.
EXIT_OK = 0
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_CHECKPOINT = 4
EXIT_NONFINITE = 5
EXIT_RESOURCE = 6
EXIT_BUSY = 7
EXIT_PREEMPTED = 75

logger = logging.getLogger("swin")


class Refusal(Exception):
    """The run cannot go on, for a reason the user can mend: one line that says what, which value and what to do.

    Args:
        message: the line.
        code: the exit code, one of the EXIT_ constants of this module.
    """

    def __init__(self, message: str, code: int = EXIT_USAGE):
        super().__init__(message)
        self.code = code


def reason(error: Exception) -> str:
    """What went wrong, for a line that names the file: without the path that an OSError names once more."""
    return getattr(error, "strerror", None) or str(error)


def one_line(error: object) -> str:
    """What an error of another library says, without its line breaks."""
    return " ".join(str(error).split())


class Preempted(Refusal):
    """A signal asked the run to stop; its state is saved and the same command goes on from there."""

    def __init__(self, message: str):
        super().__init__(message, EXIT_PREEMPTED)


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the known word that looks most like `word` in any case, or nothing."""
    by_letters = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(by_letters), n=1, cutoff=0.5)
    return f" (did you mean {by_letters[found[0]]}?)" if found else ""


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose complaints are refusals, with the nearest flag for a mistyped one."""

    def error(self, message: str) -> Any:
        """Called by argparse with what is wrong."""
        raise Refusal(f"{message}; see --help")

    def parse(self, argv: Optional[Sequence[str]]) -> argparse.Namespace:
        """Parses `argv` (None: the command line); nothing unknown is let through."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            raise Refusal(f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0], flags)}")
        return args


def run_command(main: Callable[[], None]) -> int:
    """Runs an entry point and turns refusals into one line on standard error and an exit code.

    Anything but a refusal or Ctrl-C is a fault of ours and keeps its traceback.
    """
    try:
        main()
    except Refusal as refusal:
        if refusal.code == EXIT_PREEMPTED:  # torchrun ends those that are still leaving when the first has left
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(f"{Path(sys.argv[0]).name}: {refusal}", file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 130
    return EXIT_OK


@contextlib.contextmanager
def console_log(is_leader: bool) -> Iterator[None]:
    """While this context is open, the log goes to standard output; processes that do not lead only warn."""
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO if is_leader else logging.WARNING)
    logger.propagate = False
    try:
        with _log_to(logging.StreamHandler(sys.stdout)):
            yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate


@contextlib.contextmanager
def file_log(path: Path) -> Iterator[None]:
    """While this context is open, the log is also appended to the file at `path`."""
    with _log_to(_LogFile(str(path), encoding="utf-8")):
        yield


class _LogFile(logging.FileHandler):
    """A log file whose disk may fill up: it says so once, and the run goes on without it."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by logging where a line cannot be written."""
        self._tell(sys.exc_info()[1])

    def close(self) -> None:
        """Closes the file, whether or not what is left in the buffer can be written."""
        try:
            super().close()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: Optional[BaseException]) -> None:
        if not self._failed:
            print(f"log {self.baseFilename} cannot be written: {error}", file=sys.stderr)
        self._failed = True


@contextlib.contextmanager
def _log_to(handler: logging.Handler) -> Iterator[None]:
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file at `path` by `text`; a reader sees the old contents or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def stop_signals_go_to(handler: Any) -> Iterator[None]:
    """While this context is open, SIGTERM, SIGUSR1 and Ctrl-C go to `handler`, as signal.signal takes it."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, one in zip(numbers, before):
            signal.signal(number, one)


class StopRequest:
    """SIGTERM, SIGUSR1 and Ctrl-C as a polite request: the step in progress ends, the state is saved, the run stops.

    While `deferred`, the first signal only sets `name`; a second Ctrl-C interrupts at once. Otherwise a signal raises
    `Preempted` on the spot, since there is nothing to save.

    Attributes:
        name: of the signal that came first; empty while none has.
        agreed: all processes of the run know of it, so that all stop after the same step.
    """

    def __init__(self) -> None:
        self.name = ""
        self.agreed = False
        self._deferred = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        """While this context is open, the three signals of this process come here."""
        with stop_signals_go_to(self._handle):
            yield self

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While this context is open, signals are noted instead of raised."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raises `Preempted` when a stop was requested."""
        if self.name:
            raise Preempted(f"stopped by {self.name}; run the same command to go on")

    def _handle(self, number: int, frame: Any) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.name:  # torchrun sends a signal more to those that are still stopping when the first has stopped
            return
        self.name = signal.Signals(number).name
        if not self._deferred:
            self.check()


class Throughput:
    """Samples a second since the last reading, by a clock that no time adjustment moves."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted so far."""
        self._since = time.monotonic()
        self._samples = 0

    def add(self, samples: int) -> None:
        """Counts `samples` as processed."""
        self._samples += samples

    def read(self) -> float:
        """Samples a second since the last `read` or `restart`; starts a new interval."""
        rate = self._samples / max(time.monotonic() - self._since, 1e-9)
        self.restart()
        return rate
