"""Code that all commands share: input checks, configurations, output, progress, processes."""
