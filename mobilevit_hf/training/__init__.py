"""Fine-tuning and training from scratch: arguments, tasks, and the engine that runs them."""
