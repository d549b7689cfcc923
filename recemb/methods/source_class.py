"""Row sources by the name of their form."""

import importlib
import pkgutil

import recemb.methods
from recemb.tables.row_source import RowSource


def source_class(form: str) -> type[RowSource]:
    """Return the class of this package's methods that has the form.

    Raises:
        ValueError: if none has.
    """
    found = {}
    for module in pkgutil.iter_modules(recemb.methods.__path__):
        members = vars(importlib.import_module(f"recemb.methods.{module.name}"))
        for member in members.values():
            if (
                isinstance(member, type)
                and issubclass(member, RowSource)
                and member.__dict__.get("form")
            ):
                found[member.form] = member
    if form not in found:
        raise ValueError(
            f"tables: rows of the form {form!r} are not known, only {sorted(found)}; a newer "
            "version of recemb may know them"
        )
    return found[form]
