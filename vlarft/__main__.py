"""`python -m vlarft`: the command `vlarft`."""

from vlarft.cli import main

main()
