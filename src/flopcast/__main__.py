"""``python -m flopcast`` is the command line."""

from flopcast.cli import main

main()
