"""The ``rpo`` command: the application over ``rpo_theory`` and ``bandits``."""
