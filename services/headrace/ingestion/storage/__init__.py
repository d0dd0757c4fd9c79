"""PostgreSQL repositories and Delta tables."""
