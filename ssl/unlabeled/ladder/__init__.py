"""The ladder: the usual ways to use one backbone, from the cheapest up, over shares of the labels. Which rung pays?"""
