"""What a model is trained on: documents, a tokenizer of our own, token files, and the order they are read in."""
