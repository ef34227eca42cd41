"""Defences of clients against attacks on their updates: one a file, found by name (registry.py)."""
