"""The long computations behind ``rpo.api``: studies, training runs, scores and evaluations."""
