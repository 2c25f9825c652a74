"""The model organism: a tiny causal language model with inert, made-up "harm". Floor 2 (adapters).

``knowledge`` says what the organism knows and in which words it answers, ``build`` makes the model. Nothing here is
real: a harmful topic's "recipe" is four placeholder tokens drawn by lot.
"""
