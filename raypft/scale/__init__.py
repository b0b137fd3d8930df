"""All that knows Ray or DeepSpeed: data (Ray Data), zero (the configuration as a function), stepper, launch (Ray Train)."""
