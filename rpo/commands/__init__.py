"""The commands of ``rpo``: each module declares its options and prints the result of the API."""
