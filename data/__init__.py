"""From text to batches: sources -> shards, prepared once; mixture -> rows -> batches. NumPy only, knows no model.

The four tables name what a config's `type:` may say in the data section. To add a row: write the class, add a line.
"""

DATASETS = {"text": "data.text:TextDataConfig", "shards": "data.text:ShardsDataConfig"}

SOURCES = {
    "jsonl": "data.file_sources:JSONLSourceConfig",
    "text": "data.file_sources:TextSourceConfig",
    "markdown": "data.document_sources:MarkdownSourceConfig",
    "tree": "data.document_sources:TreeSourceConfig",
    "parquet": "data.parquet_source:ParquetSourceConfig",
    "hub": "data.hub_source:HubSourceConfig",
    "stdlib": "data.stdlib_source:StdlibSourceConfig",
    "synthetic": "data.synthetic:SyntheticSourceConfig",
}

TOKENIZERS = {
    "bpe": "data.tokenizer:BPETokenizerConfig",
    "unigram": "data.tokenizer:UnigramTokenizerConfig",
    "file": "data.tokenizer:FileTokenizerConfig",
    "bytes": "data.tokenizer:BytesTokenizerConfig",
}

FILTERS = {
    "length": "data.filters:LengthFilterConfig",
    "symbols": "data.filters:SymbolFilterConfig",
    "repetition": "data.repetition:RepetitionFilterConfig",
}
