"""Bad input of every kind that this project reads, made by hypothesis.

``tests/test_fuzz.py`` runs a short form. The campaign is ``python -m tests.fuzz --minutes 60 [--kind …] [--seed N]``.
"""
