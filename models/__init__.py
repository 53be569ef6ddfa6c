"""The architectures: a config class and a module each.

To add one: write the file, add one row to `MODELS`, add a YAML. The contract tests then run over it.
"""

MODELS = {
    "llama": "models.llama:LlamaConfig",
    "qwen3": "models.qwen3:Qwen3Config",
}
