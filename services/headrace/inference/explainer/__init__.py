"""Explanations in processes of their own: `pool` gives work to them, `worker` is what runs there."""
