"""The clients' private images: where they come from (one source a file), how pixels are read, who holds which.

Everything here is a pure function of the settings and the private seed, so that the evaluator can repeat it.
"""
