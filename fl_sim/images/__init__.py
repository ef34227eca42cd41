"""The clients' private images: their sources (one a file), the reading of pixels, the partition among clients.

All of it is a pure function of the settings and the private seed, so that the evaluator can repeat it.
"""
