"""What can go wrong for a user, each with the exit code that docs/adapt.md documents."""

from __future__ import annotations

DEAD_WORKER = "DataLoader worker"  # how torch's error for a loader process that died begins


class CliError(Exception):
    """One line for the user: what, where, what next. Becomes `error: ...` on stderr and the exit code."""

    exit_code = 1


class UsageError(CliError):
    exit_code = 2


class DataError(CliError):
    exit_code = 3


class CheckpointError(CliError):
    exit_code = 4


class HubError(CliError):
    exit_code = 5


class OutputError(CliError):
    exit_code = 6


class TrainingError(CliError):
    exit_code = 7


class Interrupted(CliError):
    exit_code = 130


def one_line(error: BaseException) -> str:
    """The error's own last line: a data-loader worker wraps it into a printed traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Original Traceback" not in str(error):
        return " ".join(lines)
    return lines[-1].partition(f"{type(error).__name__}: ")[2] or lines[-1]
