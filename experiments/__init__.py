"""What a person runs: the command line, presets, leakage tables and reports."""
