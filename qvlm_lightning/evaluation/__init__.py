"""Answers, stored as they come; comparisons, computed from what is stored."""
