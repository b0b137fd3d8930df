"""From rows to a trained learner: encoding, loading, steps, the loop. No Ray and no DeepSpeed here."""
