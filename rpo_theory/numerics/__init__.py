"""Numerical methods of the three routes; private to the package."""
