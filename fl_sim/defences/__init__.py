"""What clients do so that their updates tell less: one defence a file, found by name (registry.py)."""
