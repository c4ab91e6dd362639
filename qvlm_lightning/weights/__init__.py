"""Weights in safetensors files, read and written tensor by tensor."""
