"""Keys and group options that had other names before the first release."""

RENAMED = {
    "expander.source": "init_from.path",
    "expander.source_flops": "init_from.flops",
    "expander.entry": "expander.gate_duration",
    "model.mask_words": "model.whole_word_masking",
    "expander=linear": "expander=interpolate expander.mode=linear",
    "experiment=ablation_expander": "experiment=ablation/expander",
    "experiment=ablation_k": "experiment=ablation/k",
    "experiment=ablation_samplers": "experiment=ablation/samplers",
    "experiment=ablation_schedule": "experiment=ablation/schedule",
    "experiment=late_silent": "experiment=late_zero_init",
    "experiment=paper_bert_base": "experiment=paper/bert_base",
    "experiment=paper_gpt2": "experiment=paper/gpt2",
}
