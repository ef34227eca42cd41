"""``fl-sim sweep``: many runs that differ in a few settings, one table and one report of all.

- ``file``: what a person writes: a base, fixed settings, a grid or a list of those that vary, repetitions
- ``points``: every run that follows from it, with its name and its seeds
- ``directory``: where the runs and the tables are, and whether what an earlier sweep left there belongs to it
- ``jobs``: how many runs at a time
- ``processes``: the runs side by side, each in a process of its own
- ``table``: a row for every run and attack
- ``estimate``: what it will cost
- ``command``: all of these in order
"""
