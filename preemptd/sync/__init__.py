"""`watch --sync`: what is fetched before the command starts, and sent away after each checkpoint."""
