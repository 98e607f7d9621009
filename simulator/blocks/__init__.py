"""The kinds of layer a model may be made of, one file each."""
