"""The command recemb and its verbs."""
