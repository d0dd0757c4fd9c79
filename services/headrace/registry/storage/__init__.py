"""Models and versions in PostgreSQL."""
