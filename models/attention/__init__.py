"""Attention backends: each row builds one pure function `attend(q_BHLK, k_BGSK, v_BGSK, mask, scale)`.

`simple` is the definition; every other row must equal it, values and gradients, for every mask (a contract test over
this table checks it). To add one: write the file, add the row.
"""

ATTENTION = {
    "auto": "models.attention.auto_attention:AutoAttentionConfig",
    "simple": "models.attention.simple_attention:SimpleAttentionConfig",
    "flash": "models.attention.flash_attention:FlashAttentionConfig",
}
