"""What a curious server can do with what it saw: gradient inversion."""
