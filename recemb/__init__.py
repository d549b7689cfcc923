"""recemb: embedding tables for recommenders, made small, fast and sharded."""
