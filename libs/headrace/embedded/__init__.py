"""The whole platform on one machine: a real broker, PostgreSQL, Triton, Envoy and the five services."""
