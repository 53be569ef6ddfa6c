"""Attention backends: each row builds one pure function `attend(q_BHLK, k_BGSK, v_BGSK, mask, scale)`.

`simple` is the definition; every other row must equal it, values and gradients, for every mask (a contract test over
this table checks it). To add one: write the file, add the row. `MODS` are the changes that `flex` attention can make:
with them it computes something else, which its own tests compare with formulas.
"""

ATTENTION = {
    "auto": "models.attention.auto_attention:AutoAttentionConfig",
    "simple": "models.attention.simple_attention:SimpleAttentionConfig",
    "flash": "models.attention.flash_attention:FlashAttentionConfig",
    "flex": "models.attention.flex_attention:FlexAttentionConfig",
}

MODS = {
    "causal": "models.attention.named_mods:Causal",
    "sliding_window": "models.attention.named_mods:SlidingWindow",
    "prefix_lm": "models.attention.named_mods:PrefixLM",
    "document": "models.attention.named_mods:Document",
    "global_local": "models.attention.named_mods:GlobalLocal",
    "alibi": "models.attention.named_mods:ALiBi",
    "soft_cap": "models.attention.named_mods:SoftCap",
    "and": "models.attention.mods:And",
    "or": "models.attention.mods:Or",
    "function": "models.attention.mods:FunctionMod",
}
