"""The theory of Regularized Preference Optimization: one noun of the paper a module.

Problems and rewards go in, certified solutions come out; nothing here knows of files, figures or
language models. The losses in :mod:`rpo_theory.losses` are the ones every trainer calls.
"""
