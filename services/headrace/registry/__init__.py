"""Models, their versions, artifacts, lineage, evaluation and gates."""
