"""`unlabeled doctor RECIPE [a.b=value ...]`: looks before the hours are spent.

It opens a sample of the pictures (all with `--full`), takes a few steps on this machine, and says what it found: in
words, or with `--json` as one object:

    recipe, stage        the recipe's name; pretrain or finetune
    verdict, findings    in words; each finding has code, severity (stop, high, warning, note), text and advice
    refused              why the run would not start
    out_of_memory        whether a step did not fit into the GPU
    cautions             settings that would ruin the weights that `init` names: code, text, advice
    splits.train, .val   pictures, looked_at, skipped (files that are not read, by ending), unreadable, short_side,
                         aspect, smaller_than_crop, larger_than_twice_crop (shares), channels, mean, std, suspicious,
                         classes
    copies.train, .val   exact, near: count, groups, examples; conflicting_labels
    copies.overlap       exact, near: pictures of val that are in train too; examples are (train, val)
    as_one               folders such as train and val that are all trained on
    time_limit           hours that a run may take; fits: what would be done in that time, where this recipe is not
    speed                device, threads, cores, workers, images_per_s, bound_by, waiting (share), batch,
                         memory (bytes), time (seconds); null where it could not be measured
    speed.gpu            here (this GPU as measured, or an H100 by counted operations), images_per_s that it takes,
                         cores that make them, given (cores that a process has here)
    versions             of what decides numbers

`--csv FILE` writes every copy and leak, `--split FILE` a table of all pictures with a train and a val that share none.

Exit code 2 where the run would fail, be spoiled or take longer than `--hours` (a finding of severity stop), else 0.
"""
