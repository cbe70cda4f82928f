"""Pre-training of the tokenizer, the world model and the policy: one loop, three losses."""
