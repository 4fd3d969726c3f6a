"""Commands side by side, each line of theirs under its name."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence

from model_export.errors import JobFailed


def run_side_by_side(commands: Mapping[str, Sequence[str]], jobs: int, line: Callable[[str], None]) -> None:
    """Run each command as a process, `jobs` at a time, until all have ended.

    When one fails, or the keyboard interrupts, the others are interrupted as by the keyboard and waited for. So they
    are when this process is told to end (SIGTERM) or its terminal goes away (SIGHUP). Where a shell has the keyboard
    ignored, as by `&` in a script, they ignore it too, and are sent SIGTERM.

    Args:
        commands: Program and arguments by a short name.
        jobs: How many at a time.
        line: Told of each line that a command writes, with its name before it.

    Raises:
        JobFailed: One ended with another status than 0; its lines say why.
        KeyboardInterrupt: One of these three signals came.
    """
    try:
        try:
            asyncio.run(_run_all(commands, jobs, line))
        except* JobFailed as failed:
            raise failed.exceptions[0] from None
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _run_all(commands: Mapping[str, Sequence[str]], jobs: int, line: Callable[[str], None]) -> None:
    all_of_it = asyncio.current_task()
    assert all_of_it is not None  # noqa: S101  for the type checker: this is one
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored, and it shall stay so
            asyncio.get_running_loop().add_signal_handler(number, all_of_it.cancel)
    places = asyncio.Semaphore(jobs)
    async with asyncio.TaskGroup() as group:
        for name, command in commands.items():
            group.create_task(_run(name, command, places, line))


async def _run(name: str, command: Sequence[str], places: asyncio.Semaphore, line: Callable[[str], None]) -> None:
    async with places:
        pipe, same = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
        # A session of its own: the keyboard interrupts this process, which interrupts each command once.
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=same, start_new_session=True)
        try:
            assert process.stdout is not None  # noqa: S101  for the type checker: it is a pipe
            async for written in process.stdout:
                line(f"{name}  {written.decode(errors='replace').rstrip()}")
            status = await process.wait()
        finally:
            if process.returncode is None:
                is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                process.send_signal(signal.SIGTERM if is_ignored else signal.SIGINT)
                await process.wait()
    if status:
        raise JobFailed(f"{name} ended with status {status}; what is done is kept, and the same command goes on")
