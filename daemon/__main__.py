"""`python -P -m daemon` is `petct-ingest`."""

from daemon.cli.app import main

if __name__ == "__main__":
    main()
