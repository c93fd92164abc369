"""`python -m preemptd`."""

from preemptd.cli import main

main()
