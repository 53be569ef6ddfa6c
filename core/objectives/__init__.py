"""Objectives: what a model is trained to do. `objective(model, batch) -> Loss(total, weight, metrics)`: sums.

Adding one: write `core/objectives/foo.py` with a config whose `build` returns the objective, add a row here and a YAML.
"""

OBJECTIVES = {
    "causal": "core.objectives.causal:CausalConfig",
    "denoise": "core.objectives.denoise:DenoiseConfig",
}
