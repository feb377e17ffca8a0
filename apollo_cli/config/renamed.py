"""Names that users may still type, and what they are called now."""

RENAMED_EXPERIMENTS = {
    "ablation_expander": "ablation/expander",
    "ablation_k": "ablation/k",
    "ablation_samplers": "ablation/samplers",
    "ablation_schedule": "ablation/schedule",
    "late_silent": "late_zero_init",
    "paper_bert_base": "paper/bert_base",
    "paper_gpt2": "paper/gpt2",
    "repro_gpu_late_silent": "repro_gpu_late_zero_init",
    "repro_late_silent": "repro_late_zero_init",
}
