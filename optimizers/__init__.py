"""Optimizers and schedules: pure maths above, a thin class below, one literal table for each.

Adding an optimizer: write `optimizers/foo.py` with a config whose `groups` returns the update rules, add a
row here and a YAML in `configs/optimizers/`; the contract tests run over every row.
"""

OPTIMIZERS = {
    "sgd": "optimizers.enhanced_optimizers:SGDConfig",
    "adam": "optimizers.enhanced_optimizers:AdamConfig",
    "adamw": "optimizers.enhanced_optimizers:AdamWConfig",
    "lion": "optimizers.enhanced_optimizers:LionConfig",
    "adafactor": "optimizers.adafactor:AdafactorConfig",
    "schedule_free_adamw": "optimizers.schedule_free:ScheduleFreeAdamWConfig",
    "muon": "optimizers.muon:MuonConfig",
    "soap": "optimizers.soap:SOAPConfig",
    "hybrid": "optimizers.hybrid_optimizer:HybridConfig",
    "shampoo": "optimizers.shampoo:ShampooConfig",
}

SCHEDULES = {
    "constant": "optimizers.schedules:ConstantConfig",
    "cosine": "optimizers.schedules:CosineConfig",
    "linear": "optimizers.schedules:LinearConfig",
    "wsd": "optimizers.schedules:WSDConfig",
    "polynomial": "optimizers.schedules:PolynomialConfig",
    "inverse_sqrt": "optimizers.schedules:InverseSqrtConfig",
    "one_cycle": "optimizers.schedules:OneCycleConfig",
    "sequence": "optimizers.schedule_sequence:SequenceConfig",
}
