"""How good the answers are, how far from full precision, and how sure a difference is."""
