"""How a verb ends when the user, the data or a signal is the cause: one line and a status."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException

from recemb.cli.status import USER_ERROR

_USER_ERRORS = (ValueError, TypeError, FloatingPointError, ImportError, OSError)


@contextmanager
def user_errors(verb: str, *, traceback: bool) -> Iterator[None]:
    """Turn errors that a user can cause into one line on standard error and status 2.

    A constructor's error that Hydra has wrapped is shown as the constructor raised it.

    Args:
        verb: named in the line.
        traceback: let the error through instead, with its traceback.
    """
    try:
        yield
    except (*_USER_ERRORS, InstantiationException) as error:
        if traceback:
            raise
        print(f"recemb {verb}: {_cause(error)} (traceback=true shows where)", file=sys.stderr)
        sys.exit(USER_ERROR)


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error
