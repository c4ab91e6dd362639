"""Stateful pieces: quantizers, quantized layers, blocks, and what replaces and replays them."""
