"""Optimizers and schedules: pure maths above, a thin class below, one literal table for each.

Adding an optimizer: write `optimizers/foo.py` with a config whose `groups` returns the update rules, add a
row here and a YAML in `configs/optimizers/`; the contract tests run over every row.
"""

OPTIMIZERS = {
    "sgd": "optimizers.enhanced_optimizers:SGDConfig",
    "adamw": "optimizers.enhanced_optimizers:AdamWConfig",
    "lion": "optimizers.enhanced_optimizers:LionConfig",
    "muon": "optimizers.muon:MuonConfig",
}

SCHEDULES = {
    "constant": "optimizers.schedules:ConstantConfig",
    "cosine": "optimizers.schedules:CosineConfig",
    "linear": "optimizers.schedules:LinearConfig",
    "wsd": "optimizers.schedules:WSDConfig",
}
