"""Many trainings of one program: what is tried, what is stopped early, and what MLflow keeps of it."""
