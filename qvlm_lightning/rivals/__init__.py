"""Programs that run other tools, each in an environment of its own.

Nothing here is imported by the package, and nothing here imports it: a file is started by path with
the Python of another environment (``qvlm leaderboard --rivals true``). What goes in and out are
files of one folder: ``job.json`` and a safetensors file of inputs there, weights and ``facts.json``
back (:mod:`qvlm_lightning.rivals.exchange`).
"""
