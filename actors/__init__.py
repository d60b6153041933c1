"""What one block knows: its layers, its rule, its edges. Imports neither torch nor Ray by itself."""
