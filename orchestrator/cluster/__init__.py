"""Where actors run: one contract, two backends."""
