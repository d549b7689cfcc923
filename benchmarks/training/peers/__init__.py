"""One file per peer, each with `build(task) -> Peer`; only then is its library imported."""
