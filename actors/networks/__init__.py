"""Networks as ordered lists of named layers; one file per built-in network, the folder is the registry."""
