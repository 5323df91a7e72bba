"""`unlabeled start PICTURES`: looks at pictures and machine, and writes one recipe that is ready to run.

Nothing is asked. Every choice is a row of `rules.py`; the recipe has its reason beside each field. With `--json` one
object and nothing else:

    recipe, method, network    the file that was written; names of what it trains
    pictures                   count, side, channels, bits, grey, unreadable, copies, labels, classes, each
    machine                    device, gpus, memory (GB), cores
    facts                      all that the rules decide by
    choices                    by field: value, when, because, evidence
    begin                      the weights to begin with; null = from scratch
    time                       epochs, steps, seconds, pictures_per_s, measured (whether it was)
    ladder                     command and seconds; null without labels
    cautions                   code, text, advice
    commands                   to type next, in their order
"""
