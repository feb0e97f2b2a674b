"""The computation behind ``rpo solve``: read a task, solve and certify it, summarize it."""
