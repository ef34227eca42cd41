"""Aggregation strategies, the curious one among them."""
