"""What every search shares: the problem, what an update says of the gradient, matching it, and the optimisers."""
