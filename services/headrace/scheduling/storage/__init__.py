"""PostgreSQL: schema `scheduling`."""
