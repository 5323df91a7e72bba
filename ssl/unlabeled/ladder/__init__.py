"""The ladder: the usual ways to use one backbone, from the cheapest up, over shares of the labels. Which rung pays?

It stands above the stages, whose fine-tuning its upper rungs run; only the commands stand above it.
"""
