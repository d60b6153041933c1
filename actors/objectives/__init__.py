"""One file per objective; the folder is the registry. No objective imports another."""
