"""The training service: a node's agent, and the runs that it starts as subprocesses."""
