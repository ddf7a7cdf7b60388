"""`python -m xenolith` is the command `xenolith`."""

from xenolith.cli.main import main

main()
