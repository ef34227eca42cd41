"""The labels of a classifying client's images, read off the gradient of the last linear layer."""
