"""A LLaVA of really pretrained parts, joined and briefly tuned here: DINOv2-small and SmolLM2-135M.

Not part of the package. ``make joined`` builds it; ``python -m tools.joined.train`` makes the
adapter that lies beside this file.
"""
