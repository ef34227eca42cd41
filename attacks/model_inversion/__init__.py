"""Attacks on the trained global classifier that need no client's update: model inversion."""
