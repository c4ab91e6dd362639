"""Stored answers, and the tables, figures and pages made of them."""
