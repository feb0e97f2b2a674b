"""Contextual bandits: random and named instances, real votes, and what is measured on them."""
