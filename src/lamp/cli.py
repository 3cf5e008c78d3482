"""The `lamp` command: finds the command's words, runs it, and reports what goes wrong.

Everything heavy is imported inside a command, so that help and mistakes answer at once. A user's mistake is one line on the
error stream and exit code 2.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TextIO

import lamp
from lamp.commands import COMMANDS, Command
from lamp.errors import (
    ConfigError,
    FailedElsewhereError,
    LampError,
    TerminatedError,
    describe_system_error,
    system_error,
    unknown,
)
from lamp.flags import help_text, usual_help
from lamp_client.errors import LampClientError

EXIT_MISTAKE = 2
QUIET_FLAG = "--quiet"
HELP_FLAGS = ("-h", "--help")
HELP_ALL_FLAG = "--help-all"
RESEND_S = 1.0
"""How long a signal that asks for the end may be without effect. [s]"""
EXIT_SIGNALLED = 128
"""And the signal's number: 130 after Ctrl-C, 143 after SIGTERM."""


def find(words: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """Finds the command that `words` begin with, and returns it with the words that follow.

    Raises:
        ConfigError: The words begin with no command.
    """
    for length in (2, 1):
        command = COMMANDS.get(" ".join(words[:length]))
        if command is not None and len(words) >= length:
            return command, words[length:]
    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    if group and len(words) == 1:
        raise ConfigError(f"'lamp {words[0]}' needs one more word. Known: {', '.join(group)}.")
    if group:
        raise unknown("command", " ".join(words[:2]), group)
    firsts = dict.fromkeys(name.split()[0] for name in COMMANDS)
    seconds = {name.split()[-1]: name for name in COMMANDS}
    near = [
        name for first in difflib.get_close_matches(words[0], firsts) for name in COMMANDS if name.split()[0] == first
    ]
    if words[0] in seconds or not near:
        near = [seconds[last] for last in difflib.get_close_matches(words[0], seconds, n=1)]
    if near:
        best = difflib.get_close_matches(" ".join(words[:2]), near, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown command {words[0]!r}; did you mean {best!r}? `lamp --help` lists all commands.")
    raise unknown("command", words[0], COMMANDS)


def overview(group: str | None = None) -> str:
    """The text of `lamp --help`, or of a group's, such as `lamp train --help`."""
    shown = {name: command for name, command in COMMANDS.items() if group in (None, name.split()[0])}
    width = max(map(len, shown))
    lines = [f"usage: lamp {'COMMAND' if group is None else group + ' ...'} [flags]", ""]
    if group is None:
        lines += [*(lamp.__doc__ or "").splitlines(), ""]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in shown.items()]
    lines += ["", "Every command takes --help, and --quiet (results and errors only)."]
    return "\n".join(lines if group else [*lines, "'lamp --version' prints the version."])


def _open_streams() -> None:
    """Gives a program that was started with closed streams (`lamp ... >&-`, some services) what goes nowhere in their place.

    Otherwise the next file that is opened would take their number, and whatever is printed by a library would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def _broken_pipe_ignored() -> Iterator[None]:
    """Lets `lamp ... | head` end without a word when the reader goes away."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_gone(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has gone away: another's pipe may break too, such as a worker's."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):
        return True


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """Makes an end that the system asks for (docker stop, a batch system, a closed terminal) as orderly as Ctrl-C.

    The handler raises wherever the main thread happens to be, and there a library may make another error of it, or nothing.
    """
    received: list[int] = []
    over = threading.Event()

    def terminate(number: int, frame: FrameType | None) -> None:
        if not received:
            words = (threading.main_thread().ident, number, over)
            threading.Thread(target=_resend_signal, args=words, name="lamp-end", daemon=True).start()
        received.append(number)
        raise TerminatedError(number)

    numbers = []
    if threading.current_thread() is threading.main_thread():
        numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, terminate)
    try:
        yield
    except Exception as error:
        if received:
            raise TerminatedError(received[-1]) from error
        if (stop := _interrupt_cause(error)) is not None:
            raise stop from error
        raise
    finally:
        over.set()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _interrupt_cause(error: BaseException | None) -> KeyboardInterrupt | None:
    """The request to end that an error came of, or came after."""
    seen: list[BaseException] = []  # an error may be its own cause
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _resend_signal(thread: int, number: int, over: threading.Event) -> None:
    """Sends a signal again as long as nothing has come of it: what it raised has been swallowed."""
    while not over.wait(RESEND_S):
        handled = getattr(sys, "_current_exceptions", dict)().get(thread)
        error = handled[1] if isinstance(handled, tuple) else handled
        if _interrupt_cause(error) is None:  # else it is tidying up, for as long as that takes
            signal.pthread_kill(thread, number)


@contextlib.contextmanager
def _progress_shown(name: str, command: Command, *, quiet: bool) -> Iterator[None]:
    """Says now and then that a command is at work, where it says nothing itself; under `--quiet` nothing is said."""
    from lamp.progress import QUIET, Progress

    before = os.environ.get(QUIET)
    if quiet:
        os.environ[QUIET] = "1"  # processes that it starts take it over
    try:
        with contextlib.nullcontext() if command.waits else Progress(f"lamp {name}", brief=True):
            yield
    finally:
        if quiet and before is None:
            os.environ.pop(QUIET)
        elif before is not None:
            os.environ[QUIET] = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 a user's mistake, 128 and a signal's number if one ended it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    try:
        with _signals_as_errors(), _broken_pipe_ignored():
            return _dispatch(words)
    except FailedElsewhereError:
        return EXIT_MISTAKE
    except (LampError, LampClientError) as error:
        print(f"lamp: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt as stop:
        how, number = (f"stopped by {stop}", stop.number) if isinstance(stop, TerminatedError) else ("interrupted", 2)
        if os.environ.get("RANK", "0") == "0":  # of the processes of a launcher, the main one
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"lamp: {how}; the same command continues where it stopped", file=sys.stderr)
        return EXIT_SIGNALLED + number
    except Exception as error:
        failure = system_error(error)
        if failure is None:
            raise
        with contextlib.suppress(ConfigError):
            print(f"lamp: {describe_system_error(failure, find(words)[0].elsewhere)}", file=sys.stderr)
        return EXIT_MISTAKE


def _dispatch(words: list[str]) -> int:
    groups = {name.split()[0] for name in COMMANDS if " " in name} - COMMANDS.keys()
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in (*HELP_FLAGS, HELP_ALL_FLAG, "help"):
        print(overview())
    elif words[0] == "--version":
        print(f"lamp {lamp.__version__}")
    elif words[0] in groups and words[1:] in (["-h"], ["--help"], [HELP_ALL_FLAG]):
        print(overview(words[0]))
    else:
        command, flags = find(words)
        wanted = [flag for flag in flags if flag != QUIET_FLAG]
        try:
            with _progress_shown(" ".join(words[: len(words) - len(flags)]), command, quiet=len(wanted) < len(flags)):
                _run(command, wanted)
        except SystemExit as stop:  # tyro has printed a help text
            if {*HELP_FLAGS, HELP_ALL_FLAG} & set(flags):
                print(f"'{QUIET_FLAG}' (LAMP_QUIET=1), with any command: results and errors only, not how far it is.")
            return stop.code if isinstance(stop.code, int) else 0
    return 0


def _run(command: Command, flags: list[str]) -> None:
    """Runs a command; of one with very many flags, `--help` shows those that one usually changes."""
    if HELP_ALL_FLAG in flags:
        command.run([*(flag for flag in flags if flag != HELP_ALL_FLAG), "--help"])
    elif command.usual and {*HELP_FLAGS} & set(flags):
        print(usual_help(help_text(command.run, flags), command.usual))
        raise SystemExit(0)
    else:
        command.run(flags)
