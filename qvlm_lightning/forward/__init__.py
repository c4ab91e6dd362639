"""Forward passes over the calibration set, of a model in memory or read layer by layer."""
