"""The loss of visual-encoder optimisation (eq. 8-10)."""
