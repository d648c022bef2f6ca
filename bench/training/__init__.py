"""Training with selected keys against dense training: a task, a decoder, LoRA on a transformers model, memory."""
