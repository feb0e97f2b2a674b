"""The report of ``rpo demo``, and the summaries and figures of ``rpo verify`` and studies."""
