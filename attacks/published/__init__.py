"""Attacks of papers, one a file, named as in the paper."""
