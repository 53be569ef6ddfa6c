"""Every key of the forerunners' YAML, and what becomes of it: moved, ignored with a reason, refused with a remedy, or
read by a function of `core/forerunner.py`. A key that stands in no table is a mistake and reported as one.
"""

MOVED = {
    "name": "name",
    "system.seed": "seed",
    "data.preprocessing.max_context_size": "data.sequence_length",
    "model.architecture": "model.type",
    "model.dimensions.hidden_size": "model.hidden_size",
    "model.dimensions.intermediate_size": "model.intermediate_size",
    "model.attention.num_heads": "model.num_attention_heads",
    "model.attention.num_kv_heads": "model.num_key_value_heads",
    "model.attention.head_dim": "model.head_dim",
    "model.attention.max_position_embeddings": "model.max_position_embeddings",
    "model.normalization.rms_norm_eps": "model.rms_norm_eps",
    "model.rope.theta": "model.rope_theta",
    "model.rope.traditional": "model.rope_traditional",
    "model.misc.attention_bias": "model.attention_bias",
    "model.misc.mlp_bias": "model.mlp_bias",
    "model.misc.tie_word_embeddings": "model.tie_word_embeddings",
    "training.hyperparameters.learning_rate": "optimizer.learning_rate",
    "training.scheduler.min_lr_ratio": "schedule.final_ratio",
    "logging.steps.logging_interval": "logging.every",
    "logging.max_snapshots": "checkpoint.keep_last",
    "logging.steps.max_snapshots": "checkpoint.keep_last",
}
"""Old dotted path -> ours; null counts as not given."""

ONE_PROCESS = "one process trains here; start several with mlx.launch and distributed: {type: data_parallel}"
PACKED = "documents are packed into rows whole or in consecutive pieces, and every token is trained on once"
ALWAYS_LOGGED = "loss, learning rate, gradient norm, speed and memory are always written to metrics.jsonl"
RUN_FOLDER = "everything of a run lies in runs/<name>/"
TRACKERS = "metrics.jsonl holds every number; tools/plot-logs.py draws it"

IGNORED = {
    "run_id": "the run is called by its name",
    "data.preprocessing.chunk_overlap": PACKED,
    "data.preprocessing.image_size": "only text is read",
    "data.max_texts_to_train_on": "it belongs to tokenizer training",
    "data.use_streaming": "data is always read from memory-mapped shards",
    "model.misc.use_flash_attention": "it stands under model.attention",
    "training.early_stopping.min_delta": "any smaller validation loss counts as better",
    "training.early_stopping.metric": "the validation loss decides",
    "training.early_stopping.mode": "the validation loss decides, and less is better",
    "training.lr_finder.enabled": "a command of its own finds one: python tools/find-learning-rate.py --config X.yaml",
    "training.lr_finder.min_lr": "",
    "training.lr_finder.max_lr": "",
    "training.lr_finder.num_steps": "",
    "logging.log_dir": RUN_FOLDER,
    "logging.checkpoint_dir": RUN_FOLDER,
    "logging.metrics": ALWAYS_LOGGED,
    "logging.log_memory_usage": ALWAYS_LOGGED,
    "logging.log_gradient_norm": ALWAYS_LOGGED,
    "logging.log_parameter_norm": "logging.layers_every writes the norms of each layer",
    "logging.log_samples_count": "evaluation.samples.prompts says what is sampled",
    "logging.tensorboard": TRACKERS,
    "logging.wandb": TRACKERS,
    "logging.wandb_project": TRACKERS,
    "logging.wandb_entity": TRACKERS,
    "system.device": "MLX uses the GPU where there is one",
    "system.distributed": ONE_PROCESS,
    "system.devices": ONE_PROCESS,
    "system.cuda_devices": ONE_PROCESS,
    "system.memory_limit": "nothing in the forerunners read it, and its unit was never agreed on",
    "system.model_parallel": "it was a placeholder",
    "system.model_parallel_size": "",
    "system.zero_optimization_level": "it was a placeholder",
    "resume.reset_optimizer": "weights alone are taken over",
    "resume.reset_training_state": "counters start anew",
}
"""Old dotted path -> why it changes nothing, said once when its value asks for something; "" is not said."""

LOCAL_FILES = "this version reads local files; download the text as JSON lines and name it in data.input_file"
PLAIN_TEXT = "prompt and response fields need chat data, which this version does not read"
NO_ADAPTERS = "this version trains all weights; remove it"

REFUSED = {
    "data.hf_dataset_name": LOCAL_FILES,
    "data.hf_dataset_config": LOCAL_FILES,
    "data.hf_train_split": LOCAL_FILES,
    "data.hf_val_split": LOCAL_FILES,
    "data.prompt_format": PLAIN_TEXT,
    "data.response_format": PLAIN_TEXT,
    "data.system_prompt": PLAIN_TEXT,
    "data.input_field": PLAIN_TEXT,
    "data.output_field": PLAIN_TEXT,
    "model.lora": NO_ADAPTERS,
    "model.misc.logit_scale": "no model here scales its logits; remove it",
    "model.misc.num_local_experts": "no model here has experts; remove it",
    "model.misc.num_experts_per_tok": "no model here has experts; remove it",
}
"""Old dotted path -> why a run that asks for it would not be the run that was meant."""

READ = (
    "overwrite",
    "data.input_file",
    "data.validation_file",
    "data.tokenizer_path",
    "data.weight_path",
    "data.tokenizer.normal_vocab_size",
    "data.tokenizer.special_tokens",
    "model.dimensions.num_layers",
    "model.attention.use_flash_attention",
    "model.attention.use_flex_attention",
    "model.attention.flash_block_size",
    "model.rope.scaling",
    "training.epochs",
    "training.hyperparameters.batch_size",
    "training.hyperparameters.gradient_accumulation_steps",
    "training.hyperparameters.weight_decay",
    "training.hyperparameters.gradient_clip",
    "training.hyperparameters.iters",
    "training.scheduler.type",
    "training.scheduler.schedule",
    "training.scheduler.warmup_steps",
    "training.scheduler.warmup_ratio",
    "training.optimization.optimizer",
    "training.early_stopping.enabled",
    "training.early_stopping.patience",
    "logging.steps.checkpoint_interval",
    "logging.steps.validation_interval",
    "logging.steps.sample_interval",
    "logging.log_samples",
    "system.mixed_precision",
    "system.precision",
    "system.gradient_checkpointing",
    "system.gradient_checkpointing_ratio",
    "resume.checkpoint",
)
"""Old dotted paths that `core/forerunner.py` reads itself."""

OPTIMIZER_KEYS = (
    "betas",
    "eps",
    "beta1",
    "beta2",
    "epsilon",
    "weight_decay",
    "momentum",
    "nesterov",
    "ns_steps",
    "update_period",
    "start_preconditioning_step",
    "preconditioner_epsilon",
    "exponent_override",
    "grafting_optimizer",
    "grad_clip_norm",
    "ema_momentum",
    "amsgrad",
    "matrix_optimizer",
    "non_matrix_optimizer",
)
"""Keys of `training.optimization`, of which those of the chosen optimizer are read."""

REQUIRED = (
    "name",
    "data.input_file",
    "data.preprocessing.max_context_size",
    "model.architecture",
    "model.dimensions.hidden_size",
    "model.dimensions.intermediate_size",
    "model.attention.num_heads",
    "training.hyperparameters.batch_size",
    "training.hyperparameters.learning_rate",
    "training.optimization.optimizer",
)
"""What the forerunners could not run without. Ours has defaults for some of it, and they would be another model."""

SIGNS = (
    "data.input_file",
    "data.preprocessing",
    "model.architecture",
    "model.dimensions",
    "training.hyperparameters",
    "training.optimization",
    "training.scheduler",
    "logging.steps",
    "system",
)
"""One of these makes a file a forerunner's."""

ALL_KEYS = (*MOVED, *IGNORED, *REFUSED, *READ, *(f"training.optimization.{key}" for key in OPTIMIZER_KEYS))
