"""The report: one study of a model on a cluster, written as a page or as Markdown."""
