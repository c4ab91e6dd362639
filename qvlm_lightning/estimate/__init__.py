"""Memory and time of a calibration, estimated before it starts."""
