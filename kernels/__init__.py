"""Custom ops, each beside its readable reference, installed as recemb.kernels."""

if __name__ != "recemb.kernels":
    raise ImportError(
        f"this folder holds recemb's kernels and was imported as {__name__!r}, which is the name "
        "of an unrelated package too; import recemb.kernels instead (after `make install`)"
    )
