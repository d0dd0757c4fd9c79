"""Load on a model, made by a process of its own: the service's own work would falsify what is measured."""
