"""`python -m orchestrator` is `unlocked`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
