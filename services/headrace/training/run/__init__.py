"""One run, in a process of its own: load, split, normalise, train, evaluate, export.

It holds no Kafka, SQL or gRPC connection: it reads its specification from a file, the rows from the
dataset's table, keeps checkpoints in the object store, tells its progress on a pipe, and leaves its
results in its folder. Only this package imports PyTorch; `specification`, `messages` and `report` do not, and
are what the agent shares with it.
"""
