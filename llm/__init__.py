"""Regularized preference optimisation of language models, through the loss of the theory."""
