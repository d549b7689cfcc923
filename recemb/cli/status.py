"""Exit statuses of the verbs besides 0."""

from typing import Final

USER_ERROR: Final = 2
INTERRUPTED: Final = 130
