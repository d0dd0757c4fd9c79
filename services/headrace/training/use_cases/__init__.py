"""What the node agent does."""
