"""Hydra configuration, installed as recemb.conf."""

if __name__ != "recemb.conf":
    raise ImportError(
        f"this folder is recemb's configuration and was imported as {__name__!r}, which is the "
        "name of an unrelated package too; import recemb.conf instead (after `make install`)"
    )
