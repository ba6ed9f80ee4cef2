"""`python -m sightlog`."""

from sightlog.cli import main

main()
