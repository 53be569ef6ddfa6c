"""The errors a person can fix, and the one place that turns them into `error:` lines and exit code 2.

Raise one of these with three parts: what is wrong, the value seen, what would be right. Anything else that escapes
is a bug and keeps its traceback. `assert` is for invariants only.
"""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something a person can fix. `problems` holds one line for each thing that is wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class ConfigError(UserError):
    """A config file or a command-line value is wrong."""


class DataError(UserError):
    """A corpus, a tokenizer or a token shard is missing, broken or does not fit the rest."""


class CheckpointError(UserError):
    """A run folder or a checkpoint is missing, broken, locked or does not fit the config."""


class BackendError(UserError):
    """The machine, MLX or an optional package cannot do what was asked."""


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run `main`; print each problem of a `UserError` as one `error:` line on stderr and return 2."""
    try:
        return main() or 0
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
