"""Callbacks: when to measure, search, watch and export; no arithmetic of their own."""
