"""Checks of what sequence models are made with."""


def at_least(owner: str, least: float, **values: float | None) -> None:
    """Check that numbers are not below a bound; None is none.

    Args:
        owner: who asks, named in the error.
        least: the bound.
        values: by name.

    Raises:
        ValueError: if one is.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{owner}: {name} must be at least {least}, got {value}")
