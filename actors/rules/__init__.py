"""One file per learning rule; the folder is the registry. No rule imports another."""
