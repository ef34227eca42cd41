"""The benchmark of the attacks: what is measured, on whom, and what comes out."""
