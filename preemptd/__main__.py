"""`python -m preemptd`."""

from preemptd.cli.main import main

main()
