"""All that knows Ray or DeepSpeed."""
