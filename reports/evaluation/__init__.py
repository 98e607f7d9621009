"""Published tables as data: the PLaMo-13B report's efficiencies and claims, and scores of language models.

``README.md`` says where every figure comes from, and which of the report's could not be had.
"""
