"""What a profile measures, and how a machine's nodes are measured together."""
