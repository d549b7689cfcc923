"""The command `recemb`: finds the verb's module and hands it the rest of the line."""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Final

from recemb.cli.status import USER_ERROR

# Verb -> (module, one line of help). A module is imported when its verb is asked for, so that
# `recemb doctor` works where torch does not.
VERBS: Final = {
    "train": ("recemb.cli.train", "train, evaluate and save a ranking model"),
    "prepare": ("recemb.cli.prepare", "turn raw files into prepared columns"),
    "plan": ("recemb.cli.plan", "print what a method makes of a budget, in bytes"),
    "export": ("recemb.cli.export", "write a trained model as one file for serving"),
    "predict": ("recemb.cli.predict", "score raw rows with an exported model"),
    "inspect": ("recemb.cli.inspect", "show the health of a trained run's tables and attention"),
    "sweep": ("recemb.cli.sweep", "train methods x budgets x seeds; a row of results for each"),
    "doctor": ("recemb.cli.doctor", "print versions and backends; name what is wrong and its fix"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: the verb's own, or 2 for a line not understood.

    Args:
        arguments: the words after `recemb`; the command line's where None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(usage(), file=sys.stderr)
        return USER_ERROR
    verb, *rest = words
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    if verb in ("-V", "--version", "version"):
        print(f"recemb {importlib.metadata.version('recemb')}")
        return 0
    if verb not in VERBS:
        print(unknown_verb(verb), file=sys.stderr)
        return USER_ERROR
    # Before the module is: importing torch and TorchRec takes seconds, finding a misspelt key none.
    if verb != "doctor":
        from recemb.cli.overrides import explain_line

        if complaint := explain_line(verb, rest):
            print(f"recemb {verb}: {complaint}", file=sys.stderr)
            return USER_ERROR
    module = importlib.import_module(VERBS[verb][0])
    status: int = module.run(rest)
    return status


def usage() -> str:
    """Return the help of the whole command."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: recemb VERB [ARGUMENTS]",
            "",
            "Embedding tables for recommenders, made small, fast and sharded.",
            "",
            *lines,
            "",
            "recemb VERB --help explains a verb; recemb --version prints the version.",
        ]
    )


def unknown_verb(verb: str) -> str:
    """Return the message for a verb that does not exist, naming the nearest one that does."""
    nearest = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
    hint = f"did you mean `recemb {nearest[0]}`?" if nearest else "`recemb --help` lists them all"
    return f"recemb: there is no verb {verb!r}; verbs are {', '.join(VERBS)}; {hint}"
