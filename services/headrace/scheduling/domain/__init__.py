"""Pure and synchronous: states, transitions and policies."""
